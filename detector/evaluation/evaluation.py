"""Measure a detector on one labelled split: families, format controls, robustness, baselines, stability."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detector.bundle.thresholds import Thresholds
from detector.corpus.corpus import Sample, SkippedPicture, readable
from detector.corpus.origins import Origins
from detector.detector import Detector
from detector.evaluation.conditions import CONTROLS, DEGRADATIONS, Extent
from detector.evaluation.figures import (
    FamilyFigures,
    Figures,
    family_figures,
    figures,
    labels_of,
    novelty_figures,
    policy_shares,
    ranking_of,
)
from detector.evaluation.stability import REENCODINGS, combined_verdict
from detector.metrics import Interval, intervals, share
from detector.policy import VerdictName, decide
from detector.scoring import Rewrite, Scored, ScoreJournal, ScoringError, limited, score_samples

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Plan:
    """What is measured besides the families and the format controls."""

    #: How many strengths of each degradation.
    robustness: Extent = "none"
    #: Whether to measure the stability check.
    stability: bool = False
    #: Controls, degradations and the stability check score at most this many pictures; None for all.
    condition_limit: int | None = None

    def condition_samples(self, samples: Sequence[Sample]) -> list[Sample]:
        """Choose the pictures that are scored again under every condition, stratified by family."""
        return limited(samples, self.condition_limit) if self.condition_limit else list(samples)

    def scores(self, samples: Sequence[Sample], baselines: int) -> int:
        """Return the total number of scores, given the number of baselines."""
        curves = sum(len(each.strengths(self.robustness)) for each in DEGRADATIONS)
        conditions = (1 + baselines) * len(CONTROLS) + curves + len(REENCODINGS) * self.stability
        return (1 + baselines) * len(samples) + conditions * len(self.condition_samples(samples))


@dataclass(frozen=True)
class ControlResult:
    """The figures under one format control; see `Control` for the first three fields."""

    name: str
    meaning: str
    rescaled: bool
    auroc: Interval
    #: Change of the AUROC against the unchanged files, paired picture by picture.
    shift: Interval


@dataclass(frozen=True)
class CurvePoint:
    """The figures at one strength of a degradation."""

    strength: float
    auroc: Interval
    tpr_at_fpr_5: Interval


@dataclass(frozen=True)
class Curve:
    """The figures over the strengths of one degradation, mildest first."""

    name: str
    title: str
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class PolicyShares:
    """Outcomes of a policy, as shares in 0..1; see `Figures` for the first four."""

    false_positive_rate: Interval
    real_reviewed: Interval
    detection_rate: Interval
    generated_reviewed: Interval
    #: Of all pictures.
    reviewed: Interval


@dataclass(frozen=True)
class StabilityResult:
    """What the stability check changes."""

    reencodings: tuple[str, ...]
    #: Outcomes without the check, and with it.
    without: PolicyShares
    checked: PolicyShares
    #: Share of verdicts that the check turned into review, 0..1.
    overturned: float
    #: Scores of a picture with the check, which costs that many times as much.
    scores: int


@dataclass(frozen=True)
class Comparison:
    """One detector in the comparison with the baselines."""

    name: str
    digest: str
    auroc: Interval
    tpr_at_fpr_5: Interval
    #: Largest absolute shift of the AUROC under a format control.
    largest_shift: float
    #: How much higher the AUROC of the evaluated bundle is; None for that bundle itself.
    margin: Interval | None


@dataclass(frozen=True)
class SplitEvaluation:
    """Everything measured on one split."""

    split: str
    overall: Figures
    families: list[FamilyFigures]
    #: New sources of known generators, and new generators; empty where the training is unknown.
    novelties: list[FamilyFigures]
    controls: list[ControlResult]
    curves: list[Curve]
    stability: StabilityResult | None
    comparison: list[Comparison]
    #: The scores of the unchanged files, by this bundle and by the baselines.
    scored: list[Scored]
    baselines_scored: dict[str, list[Scored]]
    unreadable: list[SkippedPicture]
    #: Number of pictures behind controls, curves and stability, and their AUROC when unchanged.
    condition_pictures: int
    as_is_auroc: Interval

    @property
    def largest_shift(self) -> ControlResult:
        """The format control that shifts the AUROC most, in either direction."""
        return max(self.controls, key=lambda control: abs(control.shift.value))

    @property
    def largest_shift_by_encoding(self) -> ControlResult:
        """The same among the controls that change only the encoding."""
        by_encoding = [control for control in self.controls if not control.rescaled]
        return max(by_encoding, key=lambda control: abs(control.shift.value))


def evaluate_split(
    split: str,
    detector: Detector,
    samples: Sequence[Sample],
    plan: Plan,
    *,
    baselines: Mapping[str, Detector] | None = None,
    trained: Origins | None = None,
    journal: ScoreJournal | None = None,
    progress: Progress = lambda _: None,
) -> SplitEvaluation:
    """Measure a detector, and the `baselines` by name, on the samples of one split.

    Files that cannot be decoded are skipped. `trained` has the generators and sources of the training. Scores
    in the `journal` are not computed again. `progress` is called with numbers of finished scores. Raises
    `ScoringError`, and `CorpusRejectedError` when no file can be decoded.
    """
    baselines = baselines or {}
    thresholds = detector.bundle.manifest.thresholds
    chosen, unreadable = readable(samples)
    if {sample.generated for sample in chosen} != {True, False}:
        raise ScoringError(f"{split}: figures need readable pictures of both classes")
    progress(plan.scores(samples, len(baselines)) - plan.scores(chosen, len(baselines)))
    repeated = plan.condition_samples(chosen)
    paths = {sample.path for sample in repeated}

    by_family: dict[str, list[Sample]] = defaultdict(list)
    for sample in chosen:
        by_family[sample.family].append(sample)
    seen = {family: trained.seen(members) for family, members in by_family.items()} if trained else {}

    def score(detector: Detector, condition: str, rewrite: Rewrite) -> list[Scored]:
        return score_samples(
            detector, repeated, rewrite, condition=condition, journal=journal, progress=progress
        )

    def unchanged(scored: list[Scored]) -> list[Scored]:
        return [item for item in scored if item.path in paths]

    scored = score_samples(detector, chosen, journal=journal, progress=progress)
    controls = _controls(detector, unchanged(scored), score)
    comparison = [_compared("this bundle", detector, scored, controls, against=None)] if baselines else []
    baselines_scored: dict[str, list[Scored]] = {}
    for name, baseline in baselines.items():
        own = baselines_scored[name] = score_samples(baseline, chosen, journal=journal, progress=progress)
        own_controls = _controls(baseline, unchanged(own), score)
        comparison.append(_compared(name, baseline, own, own_controls, against=scored))
    return SplitEvaluation(
        split=split,
        overall=figures(scored, thresholds),
        families=family_figures(scored, thresholds, seen),
        novelties=novelty_figures(scored, thresholds, seen) if seen else [],
        controls=controls,
        curves=_curves(detector, unchanged(scored), plan.robustness, score),
        stability=_stability(detector, unchanged(scored), score) if plan.stability else None,
        comparison=comparison,
        scored=scored,
        baselines_scored=baselines_scored,
        unreadable=unreadable,
        condition_pictures=len(repeated),
        as_is_auroc=_ranked(unchanged(scored))["auroc"],
    )


_Score = Callable[[Detector, str, Rewrite], list[Scored]]


def _controls(detector: Detector, unchanged: list[Scored], score: _Score) -> list[ControlResult]:
    before = ranking_of(unchanged)
    results: list[ControlResult] = []
    for control in CONTROLS:
        after = ranking_of(score(detector, control.name, control.rewrite))
        measured = intervals(
            {
                "auroc": after.auroc,
                "shift": lambda counts, after=after: after.auroc(counts) - before.auroc(counts),  # type: ignore[misc]
            },
            labels_of(unchanged),
        )
        results.append(ControlResult(control.name, control.meaning, control.rescaled, **measured))
    return results


def _curves(detector: Detector, unchanged: list[Scored], extent: Extent, score: _Score) -> list[Curve]:
    curves: list[Curve] = []
    for degradation in DEGRADATIONS if extent != "none" else ():
        points = []
        if degradation.identity is not None:
            points.append(CurvePoint(degradation.identity, **_ranked(unchanged)))
        for strength in degradation.strengths(extent):
            degraded = score(detector, f"{degradation.name} {strength}", degradation.at(strength))
            points.append(CurvePoint(strength, **_ranked(degraded)))
        curves.append(Curve(degradation.name, degradation.title, tuple(points)))
    return curves


def _ranked(scored: list[Scored]) -> dict[str, Interval]:
    ranking = ranking_of(scored)
    return intervals(
        {"auroc": ranking.auroc, "tpr_at_fpr_5": lambda counts: ranking.tpr_at_fpr(counts, 0.05)},
        labels_of(scored),
    )


def _stability(detector: Detector, unchanged: list[Scored], score: _Score) -> StabilityResult:
    thresholds = detector.bundle.manifest.thresholds
    reencoded = [
        score(detector, each.name, lambda pixels, _, each=each: each.apply(pixels))  # type: ignore[misc]
        for each in REENCODINGS
    ]
    first = _verdicts(unchanged, thresholds)
    others = zip(*(_verdicts(scored, thresholds) for scored in reencoded), strict=True)
    checked = [combined_verdict(verdict, other) for verdict, other in zip(first, others, strict=True)]
    return StabilityResult(
        reencodings=tuple(each.name for each in REENCODINGS),
        without=_shares(unchanged, first),
        checked=_shares(unchanged, checked),
        overturned=float(np.mean([before != after for before, after in zip(first, checked, strict=True)])),
        scores=1 + len(REENCODINGS),
    )


def _verdicts(scored: list[Scored], thresholds: Thresholds) -> list[VerdictName]:
    return [decide(item.probability, thresholds, item.doubt) for item in scored]


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
        own, baseline = ranking_of(against), ranking_of(scored)
        formula = {"margin": lambda counts: own.auroc(counts) - baseline.auroc(counts)}
        margin = intervals(formula, labels_of(scored))["margin"]
    return Comparison(
        name=name,
        digest=detector.bundle.digest,
        **_ranked(scored),
        largest_shift=max(abs(control.shift.value) for control in controls),
        margin=margin,
    )
