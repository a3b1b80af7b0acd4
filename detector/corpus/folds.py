"""Folds of a corpus that leave out whole generators and whole sources."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from detector.corpus.corpus import CorpusRejectedError, Sample, linked

LeaveOut = Literal["generators", "sources"]
LEAVE_OUT: tuple[str, ...] = get_args(LeaveOut)


@dataclass(frozen=True)
class Fold:
    """Pictures to score, and pictures to train on, which have nothing in common with them."""

    training: list[Sample]
    held_out: list[Sample]
    #: For each held-out picture the name of what was left out with it: a generator, or a source.
    units: list[str]

    def with_twins(self, twins: Sequence[Sample]) -> "Fold":
        """Add the twins of training photographs to the training."""
        groups = {sample.group for sample in self.training if not sample.generated}
        own = [twin for twin in twins if twin.group in groups]
        return Fold([*self.training, *own], self.held_out, self.units)


def folds(samples: Sequence[Sample], count: int, leave_out: LeaveOut = "generators") -> list[Fold]:
    """Divide samples into `count` folds; each picture but a twin is held out in exactly one of them.

    With "generators", all pictures that may be of one generator are held out together, whatever their
    source, and all photographs of one source. With "sources", a generator may stay in training through
    another source. A group is never divided. The training pictures of a fold share no source, no group and,
    with "generators", no generator with its held-out pictures. Raises `CorpusRejectedError` when a fold lacks
    a class.

    A twin, a generated picture with a photograph of the corpus as its pair, only helps to train, beside its
    photograph: what made it is no generator that one meets, and its photograph is in the figures already.
    """
    photographs = {sample.pair for sample in samples if sample.pair and not sample.generated}
    twins = [sample for sample in samples if sample.generated and sample.pair in photographs]
    samples = [sample for sample in samples if not (sample.generated and sample.pair in photographs)]
    units = linked([_names(sample, leave_out) for sample in samples])
    fold_of = _balanced(samples, units, count)
    made: list[Fold] = []
    for number in range(count):
        fold = _fold(samples, units, [fold_of[unit] == number for unit in units], leave_out)
        for purpose, part in (("train on", fold.training), ("score", fold.held_out)):
            if {sample.generated for sample in part} != {True, False}:
                raise CorpusRejectedError(f"fold {number + 1} of {count} lacks a class to {purpose}")
        made.append(fold.with_twins(twins))
    return made


def _names(sample: Sample, leave_out: LeaveOut) -> list[Hashable]:
    """Return what links a picture to those that are held out with it, first the name of its unit."""
    if sample.generated and leave_out == "generators":
        own: list[Hashable] = [("generator", name) for name in sorted(sample.generators)]
    else:
        own = [("source", sample.origin)]
    return [*own, ("group", sample.group)]


def _balanced(samples: Sequence[Sample], units: Sequence[Hashable], count: int) -> dict[Hashable, int]:
    """Return a fold for each unit: large units first, each to where both classes stay most even."""
    sizes: dict[Hashable, list[int]] = {}
    for sample, unit in zip(samples, units, strict=True):
        sizes.setdefault(unit, [0, 0])[sample.generated] += 1
    totals = [max(1, sum(size[label] for size in sizes.values())) for label in (0, 1)]
    filled = [[0, 0] for _ in range(count)]
    chosen: dict[Hashable, int] = {}
    for unit, size in sorted(sizes.items(), key=lambda item: (-sum(item[1]), str(item[0]))):

        def unevenness(number: int, size: list[int] = size) -> float:
            own = filled[number]
            return sum(
                ((own[label] + size[label]) ** 2 - own[label] ** 2) / totals[label] ** 2 for label in (0, 1)
            )

        chosen[unit] = min(range(count), key=unevenness)
        for label in (0, 1):
            filled[chosen[unit]][label] += size[label]
    return chosen


def _fold(
    samples: Sequence[Sample], units: Sequence[Hashable], is_held_out: Sequence[bool], leave_out: LeaveOut
) -> Fold:
    held_out = [sample for sample, held in zip(samples, is_held_out, strict=True) if held]
    sources = {sample.origin for sample in held_out}
    groups = {sample.group for sample in held_out}
    generators = {name for sample in held_out for name in sample.generators}
    training = [
        sample
        for sample in samples
        if sample.origin not in sources
        and sample.group not in groups
        and (leave_out == "sources" or generators.isdisjoint(sample.generators))
    ]
    names = [": ".join(map(str, unit)) if isinstance(unit, tuple) else str(unit) for unit in units]
    return Fold(training, held_out, [name for name, held in zip(names, is_held_out, strict=True) if held])
