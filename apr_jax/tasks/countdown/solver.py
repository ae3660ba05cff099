"""The arithmetic of Countdown and an exhaustive solver."""


def combine(a: int, b: int) -> list[tuple[int, str, int, int]]:
    """All results of two non-negative integers, in the published order + * - /.

    Returns:
        Tuples (left, symbol, right, result). Differences and quotients have the larger number first; division is exact.
    """
    results = [(a, "+", b, a + b), (a, "*", b, a * b)]
    large, small = (b, a) if a <= b else (a, b)
    results.append((large, "-", small, large - small))
    if small and large % small == 0:
        results.append((large, "/", small, large // small))
    return results


def expand(nums: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """All successors of a state, by pair of places and then + * - /.

    Returns:
        Pairs of an operation, `53-22=31` say, and the new state: the remaining numbers in order, then the result.
    """
    successors = []
    for i in range(len(nums) - 1):
        for j in range(i + 1, len(nums)):
            rest = nums[:i] + nums[i + 1 : j] + nums[j + 1 :]
            for left, symbol, right, result in combine(nums[i], nums[j]):
                successors.append((f"{left}{symbol}{right}={result}", (*rest, result)))
    return successors


def solve(nums: tuple[int, ...], target: int) -> tuple[str, ...] | None:
    """Find one way to reach `target` with all the numbers, depth first in the order of `expand`.

    Returns:
        The operations, or None if there is no way.
    """
    if len(nums) == 1:
        return () if nums[0] == target else None
    if len(nums) == 2:
        a, b = nums
        # Usually there is no solution: check this before anything is allocated.
        if not (a + b == target or a * b == target or abs(a - b) == target or min(a, b) * target == max(a, b)):
            return None
        return next(
            ((f"{a}{symbol}{b}={result}",) for a, symbol, b, result in combine(*nums) if result == target), None
        )
    for i in range(len(nums) - 1):
        for j in range(i + 1, len(nums)):
            rest = nums[:i] + nums[i + 1 : j] + nums[j + 1 :]
            for left, symbol, right, result in combine(nums[i], nums[j]):
                tail = solve((*rest, result), target)
                if tail is not None:
                    return (f"{left}{symbol}{right}={result}", *tail)
    return None
