"""Seeded samples and disjoint splits of drawn problems: what a problem belongs to follows from its identity alone."""

import hashlib
import random
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TypeVar, get_args

Split = Literal["train", "val", "test"]
Drawn = TypeVar("Drawn")

_BUCKETS = 16
_HELD_OUT: Mapping[str, int] = MappingProxyType({"val": 0, "test": 1})  # all other buckets belong to train


def check_split(split: str) -> None:
    """Raises ValueError if there is no such split."""
    if split not in get_args(Split):
        raise ValueError(f"split: {split!r} is not one of {', '.join(get_args(Split))}")


def split_of(identity: str) -> Split:
    """The split of a problem, from a text that is the same for all ways to write the problem."""
    bucket = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") % _BUCKETS
    return next((split for split, held_out in _HELD_OUT.items() if bucket == held_out), "train")


def generator(seed: int, split: str, index: int) -> random.Random:
    """The random generator of one sample (strings are hashed by SHA-512: equal on every machine)."""
    return random.Random(f"{seed}/{split}/{index}")


def distinct(samples: Iterator[Drawn], identity: Callable[[Drawn], Hashable], count: int, where: str) -> list[Drawn]:
    """The first `count` samples of different identities.

    Args:
        samples: an endless stream.
        identity: of a sample.
        count: samples wanted.
        where: what the samples are drawn from, for the message.

    Raises:
        ValueError: there seem to be fewer (50 draws in a row brought nothing new per sample found so far, plus 1000).
    """
    seen, found, idle = set(), [], 0
    while len(found) < count:
        sample = next(samples)
        key = identity(sample)
        idle = idle + 1 if key in seen else 0
        if idle > 1000 + 50 * len(found):
            raise ValueError(f"count: {count} problems wanted, {where} seems to hold only {len(found)}")
        if key not in seen:
            seen.add(key)
            found.append(sample)
    return found
