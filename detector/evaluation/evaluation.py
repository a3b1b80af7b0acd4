"""Measure a detector on one labelled split: families, format controls, robustness, rivals, stability."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detector.bundle.calibration import Thresholds
from detector.corpus.corpus import Sample, SkippedPicture, readable
from detector.detector import Detector
from detector.evaluation.controls import AS_IS, CONTROLS
from detector.evaluation.figures import (
    FamilyFigures,
    Figures,
    family_figures,
    figures,
    labels_of,
    policy_shares,
    ranking_of,
)
from detector.evaluation.robustness import DEGRADATIONS, Extent
from detector.evaluation.scoring import Rewrite, Scored, ScoringError, limited, score_samples
from detector.evaluation.stability import REENCODINGS, settled
from detector.metrics import Interval, intervals, share
from detector.policy import VerdictName, decide

Progress = Callable[[int], None]

_WARM_UP = 4


@dataclass(frozen=True)
class Plan:
    """What is measured beside the families and the format controls.

    Controls, curves and the stability check score at most `condition_limit` pictures, families in
    proportion; all of them when it is None.
    """

    robustness: Extent = "none"
    stability: bool = False
    condition_limit: int | None = None

    def altered(self, samples: Sequence[Sample]) -> list[Sample]:
        """Choose the pictures that are scored once more in every condition."""
        return limited(samples, self.condition_limit) if self.condition_limit else list(samples)

    def scores(self, samples: Sequence[Sample], rivals: int) -> int:
        """Return how many scores the plan takes, with so many rivals beside the bundle."""
        curves = sum(len(each.strengths(self.robustness)) for each in DEGRADATIONS)
        conditions = (1 + rivals) * len(CONTROLS) + curves + len(REENCODINGS) * self.stability
        return (1 + rivals) * len(samples) + conditions * len(self.altered(samples))


@dataclass(frozen=True)
class ControlResult:
    """One format control: its `auroc`, and the `shift` against the files as they are, picture by picture.

    `rescaled` says that it changes more than the encoding.
    """

    name: str
    meaning: str
    rescaled: bool
    auroc: Interval
    shift: Interval


@dataclass(frozen=True)
class CurvePoint:
    """The figures at one strength of a degradation."""

    strength: float
    auroc: Interval
    tpr_at_fpr_5: Interval


@dataclass(frozen=True)
class Curve:
    """The figures over one kind of degradation, mildest first."""

    name: str
    title: str
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class PolicyShares:
    """What a policy does, each in 0..1: of the reals, of the generated, and of all pictures (`reviewed`)."""

    real_accused: Interval
    real_reviewed: Interval
    generated_found: Interval
    generated_reviewed: Interval
    reviewed: Interval


@dataclass(frozen=True)
class StabilityResult:
    """What the stability check changes: the shares without and with it.

    `overturned` is the share of verdicts that it turned into review, `time_ratio` the scoring time with it,
    over that without it, in this run.
    """

    reencodings: tuple[str, ...]
    without: PolicyShares
    checked: PolicyShares
    overturned: float
    time_ratio: float


@dataclass(frozen=True)
class Comparison:
    """A detector in the comparison; `margin` is by how much this bundle's AUROC is higher, None for itself.

    `largest_shift` is that of the AUROC by a format control, without its sign.
    """

    name: str
    digest: str
    auroc: Interval
    tpr_at_fpr_5: Interval
    largest_shift: float
    margin: Interval | None


@dataclass(frozen=True)
class SplitEvaluation:
    """Everything measured on one split; `scored` and `rivals_scored` are of the files as they are.

    The controls, the curves and the stability check are measured on `altered_pictures` of the pictures, whose
    AUROC before any change is `as_is_auroc`.
    """

    split: str
    overall: Figures
    families: list[FamilyFigures]
    controls: list[ControlResult]
    curves: list[Curve]
    stability: StabilityResult | None
    comparison: list[Comparison]
    scored: list[Scored]
    rivals_scored: dict[str, list[Scored]]
    unreadable: list[SkippedPicture]
    altered_pictures: int
    as_is_auroc: Interval

    @property
    def largest_shift(self) -> ControlResult:
        """The format control that moves the AUROC most, in either direction."""
        return max(self.controls, key=lambda control: abs(control.shift.value))

    @property
    def largest_shift_by_encoding(self) -> ControlResult:
        """The same among the controls that change the encoding and nothing else."""
        kept = [control for control in self.controls if not control.rescaled]
        return max(kept, key=lambda control: abs(control.shift.value))


def evaluate_split(
    split: str,
    detector: Detector,
    samples: Sequence[Sample],
    plan: Plan,
    *,
    rivals: Mapping[str, Detector] | None = None,
    progress: Progress = lambda _: None,
) -> SplitEvaluation:
    """Measure a detector, and its `rivals` by name, on the samples of one split.

    Files that cannot be decoded are left out. `progress` is told how many scores were done. Raises
    `ScoringError`, and `CorpusRejectedError` when no file can be decoded.
    """
    rivals = rivals or {}
    thresholds = detector.bundle.manifest.thresholds
    chosen, unreadable = readable(samples)
    if {sample.generated for sample in chosen} != {True, False}:
        raise ScoringError(f"{split}: figures need readable pictures of both classes")
    progress(plan.scores(samples, len(rivals)) - plan.scores(chosen, len(rivals)))
    altered = plan.altered(chosen)
    paths = {sample.path for sample in altered}

    def score(who: Detector, rewrite: Rewrite) -> list[Scored]:
        return score_samples(who, altered, rewrite, progress=progress)

    def as_is(scored: list[Scored]) -> list[Scored]:
        return [one for one, sample in zip(scored, chosen, strict=True) if sample.path in paths]

    detector.warm_up(_WARM_UP)
    began = time.perf_counter()
    scored = score_samples(detector, chosen, AS_IS.rewrite, progress=progress)
    seconds = (time.perf_counter() - began) * len(altered) / len(chosen)
    controls = _controls(detector, as_is(scored), score)
    rivals_scored = {
        name: score_samples(rival, chosen, AS_IS.rewrite, progress=progress) for name, rival in rivals.items()
    }
    rivals_controls = {name: _controls(rivals[name], as_is(rivals_scored[name]), score) for name in rivals}
    return SplitEvaluation(
        split=split,
        overall=figures(scored, thresholds),
        families=family_figures(scored, thresholds),
        controls=controls,
        curves=_curves(detector, as_is(scored), plan.robustness, score),
        stability=_stability(detector, as_is(scored), seconds, score) if plan.stability else None,
        comparison=[
            _compared("this bundle", detector, scored, controls, against=None),
            *(
                _compared(name, rivals[name], rivals_scored[name], rivals_controls[name], against=scored)
                for name in rivals
            ),
        ]
        if rivals
        else [],
        scored=scored,
        rivals_scored=rivals_scored,
        unreadable=unreadable,
        altered_pictures=len(altered),
        as_is_auroc=_ranked(as_is(scored))["auroc"],
    )


_Score = Callable[[Detector, Rewrite], list[Scored]]


def _controls(detector: Detector, as_is: list[Scored], score: _Score) -> list[ControlResult]:
    before = ranking_of(as_is)
    results: list[ControlResult] = []
    for control in CONTROLS:
        after = ranking_of(score(detector, control.rewrite))
        measured = intervals(
            {
                "auroc": after.auroc,
                "shift": lambda counts, after=after: after.auroc(counts) - before.auroc(counts),  # type: ignore[misc]
            },
            labels_of(as_is),
        )
        results.append(ControlResult(control.name, control.meaning, control.rescaled, **measured))
    return results


def _curves(detector: Detector, as_is: list[Scored], extent: Extent, score: _Score) -> list[Curve]:
    curves: list[Curve] = []
    for degradation in DEGRADATIONS if extent != "none" else ():
        points = [] if degradation.untouched is None else [_point(degradation.untouched, as_is)]
        points += [
            _point(strength, score(detector, degradation.at(strength)))
            for strength in degradation.strengths(extent)
        ]
        curves.append(Curve(degradation.name, degradation.title, tuple(points)))
    return curves


def _point(strength: float, scored: list[Scored]) -> CurvePoint:
    return CurvePoint(strength, **_ranked(scored))


def _ranked(scored: list[Scored]) -> dict[str, Interval]:
    ranking = ranking_of(scored)
    return intervals(
        {"auroc": ranking.auroc, "tpr_at_fpr_5": lambda counts: ranking.tpr_at_fpr(counts, 0.05)},
        labels_of(scored),
    )


def _stability(detector: Detector, as_is: list[Scored], seconds: float, score: _Score) -> StabilityResult:
    thresholds = detector.bundle.manifest.thresholds
    began = time.perf_counter()
    reencoded = [score(detector, lambda pixels, _, each=each: each.apply(pixels)) for each in REENCODINGS]  # type: ignore[misc]
    more_seconds = time.perf_counter() - began
    first = _verdicts(as_is, thresholds)
    others = zip(*(_verdicts(scored, thresholds) for scored in reencoded), strict=True)
    checked = [settled(own, other) for own, other in zip(first, others, strict=True)]
    return StabilityResult(
        reencodings=tuple(each.name for each in REENCODINGS),
        without=_shares(as_is, first),
        checked=_shares(as_is, checked),
        overturned=float(np.mean([own != held for own, held in zip(first, checked, strict=True)])),
        time_ratio=(seconds + more_seconds) / seconds,
    )


def _verdicts(scored: list[Scored], thresholds: Thresholds) -> list[VerdictName]:
    return [decide(item.probability, thresholds) for item in scored]


def _shares(scored: list[Scored], verdicts: list[VerdictName]) -> PolicyShares:
    return PolicyShares(
        **policy_shares(labels_of(scored), verdicts), reviewed=share(verdicts.count("review"), len(verdicts))
    )


def _compared(
    name: str,
    detector: Detector,
    scored: list[Scored],
    controls: list[ControlResult],
    *,
    against: list[Scored] | None,
) -> Comparison:
    margin = None
    if against is not None:
        own, rival = ranking_of(against), ranking_of(scored)
        formula = {"margin": lambda counts: own.auroc(counts) - rival.auroc(counts)}
        margin = intervals(formula, labels_of(scored))["margin"]
    return Comparison(
        name=name,
        digest=detector.bundle.digest,
        **_ranked(scored),
        largest_shift=max(abs(control.shift.value) for control in controls),
        margin=margin,
    )
