"""The rows of the comparison: which engine's work is held against which, under what name, with what target."""

import dataclasses

from benchmarks.peers.workloads import Attention, Bare, Feed, ForkJoin, Products, Samples, Steps, Threads, Workload

ENGINE, VLLM, TRANSFORMERS, LLAMACPP = "engine", "vllm", "transformers", "llamacpp"
PEERS = (VLLM, TRANSFORMERS, LLAMACPP)


@dataclasses.dataclass(frozen=True)
class Job:
    """One workload on one engine."""

    engine: str
    work: Workload


@dataclasses.dataclass(frozen=True)
class Row:
    """A comparison.

    Attributes:
        name: as it stands in `summary.json`.
        model: name of the weights.
        ours, theirs: the two timed jobs.
        target: the ratio aimed at; None where it is only reported.
        cost: the ratio is what ours takes longer (0.05 is 5 %); otherwise it is our speed over theirs.
        share: theirs is a part of ours, and the ratio is its share of the time (which is our speed over its).

    A cost and a share are to be at most `target`, a speed at least.
    """

    name: str
    model: str
    ours: Job
    theirs: Job
    target: float | None
    cost: bool = False
    share: bool = False

    @property
    def at_most(self) -> bool:
        return self.cost or self.share


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much work there is: that of the benchmark, or a little of it to see that everything runs."""

    problems_tiny: int = 64
    problems_smollm2: int = 32
    share: float = 1.0
    tokens: int = 128
    prefix: int = 512
    steps: int = 8

    @classmethod
    def reduced(cls) -> "Scale":
        return cls(problems_tiny=4, problems_smollm2=2, share=0.1, tokens=8, prefix=66, steps=2)


def rows(scale: Scale, vocabularies: dict[str, int]) -> tuple[Row, ...]:
    """All rows; those that share a job share its timings."""
    return (
        *_fork_join(scale, vocabularies),
        *_searches(scale, vocabularies),
        *_tiny(scale, vocabularies),
        *_smollm2(scale, vocabularies),
    )


def _row(
    name: str, model: str, work: Workload, peer: str, target: float | None, theirs: Workload | None = None, **options
) -> Row:
    return Row(name, model, Job(ENGINE, work), Job(peer, theirs or work), target, **options)


def _fork_join(scale: Scale, vocabularies: dict[str, int]) -> list[Row]:
    found = []
    for model, problems, plain, stitched in (
        ("tiny", scale.problems_tiny, 1.6, 2.4),
        ("smollm2", scale.problems_smollm2, 0.9, 1.2),
    ):
        work = ForkJoin(problems, max(problems // 2, 1), vocabularies[model], share=scale.share)
        found.append(_row(f"workload_{model}_vs_vllm", model, work, VLLM, plain))
        # vLLM cannot stitch: it does the same work by re-encoding.
        stitching = dataclasses.replace(work, join="stitch")
        found.append(_row(f"workload_{model}_stitched_vs_vllm", model, stitching, VLLM, stitched, theirs=work))
    return found


def _searches(scale: Scale, vocabularies: dict[str, int]) -> list[Row]:
    """Sixteen samples, or candidates in each round, of every prompt; from the prompts on."""
    found = []
    for model, problems, prompt in (("tiny", 8, min(scale.prefix, 128)), ("smollm2", 1, scale.prefix)):
        steps = Steps(problems, 4, 4, 1, scale.steps, max(scale.tokens // 4, 1), prompt, vocabularies[model])
        works = {
            "self_consistency": Samples(problems, 16, prompt, scale.tokens, vocabularies[model]),
            "beam_search": steps,
            "dvts": dataclasses.replace(steps, subtrees=steps.beams),
        }
        found += [_row(f"{name}_{model}_vs_vllm", model, work, VLLM, 1.5) for name, work in works.items()]
    return found


def _tiny(scale: Scale, vocabularies: dict[str, int]) -> list[Row]:
    shape = lambda problems: Threads(problems, 8, min(scale.prefix, 128), scale.tokens, vocabularies["tiny"])
    found = [
        _row(f"tiny_vs_vllm_{problems * 8}", "tiny", shape(problems), VLLM, target)
        for problems, target in ((1, 2.0), (4, 1.5), (32, 1.2))
    ]
    for problems, target in ((1, None), (32, 0.05)):
        found.append(_overhead("tiny", shape(problems), target))
    return [*found, _wall("tiny", shape(32), None)]


def _smollm2(scale: Scale, vocabularies: dict[str, int]) -> list[Row]:
    vocabulary = vocabularies["smollm2"]
    shape = lambda problems, threads: Threads(problems, threads, scale.prefix, scale.tokens, vocabulary)
    eight, feed = shape(1, 8), Feed(scale.prefix, vocabulary)
    found = [_row("vs_vllm_8", "smollm2", eight, VLLM, 0.8)]
    found += [
        _row("vs_transformers_8", "smollm2", eight, TRANSFORMERS, 2.5),
        _row("vs_llamacpp_8", "smollm2", eight, LLAMACPP, 1.5),
    ]
    found += [_row(f"vs_vllm_{threads}", "smollm2", shape(1, threads), VLLM, 0.9) for threads in (16, 32)]
    for peer, target in ((VLLM, 0.7), (TRANSFORMERS, 1.5), (LLAMACPP, 3.0)):
        found.append(_row(f"feed_vs_{peer}", "smollm2", feed, peer, target))
    found.append(
        _row("attention_share", "smollm2", shape(8, 8), ENGINE, 0.25, theirs=Attention(shape(8, 8)), share=True)
    )
    for problems in (1, 8):
        found.append(_overhead("smollm2", shape(problems, 8), 0.05))
        found.append(_wall("smollm2", shape(problems, 8), 0.85))
    # The same fill in pools of 1,024 and of 16,384 slots.
    few = Threads(1, 4, scale.prefix, min(scale.tokens, 64), vocabulary, slots=1024)
    large = dataclasses.replace(few, slots=16384)
    return [*found, _row("capacity_cost", "smollm2", large, ENGINE, 0.05, theirs=few, cost=True)]


def _overhead(model: str, work: Threads, target: float | None) -> Row:
    name = f"thread_overhead_{model}_{work.problems}x{work.threads}"
    work = dataclasses.replace(work, one_device=True)
    return _row(name, model, work, ENGINE, target, theirs=Bare(work), cost=True)


def _wall(model: str, work: Threads, target: float | None) -> Row:
    name = f"of_bare_products_{model}_{work.problems}x{work.threads}"
    work = dataclasses.replace(work, one_device=True)
    return _row(name, model, work, ENGINE, target, theirs=Products(work))
