"""Figures of a cross-validation: of pictures that were each scored by a fold which did not see them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.corpus.corpus import Sample
from detector.metrics import Counts, Interval, Ranking, Scores, calibration_errors, intervals

#: A content counts from this number of pictures of each class.
FEWEST = 10


@dataclass(frozen=True)
class ScoredSample:
    """A held-out picture with its score."""

    sample: Sample
    fold: int
    unit: str
    #: Calibrated log-odds of *generated*.
    logit: float
    probability: float
    #: Logits of the views, before calibration.
    views: tuple[float, ...] = ()


@dataclass(frozen=True)
class ContentFigures:
    """The AUROC among pictures of one content."""

    content: str
    real: int
    generated: int
    auroc: Interval


@dataclass(frozen=True)
class FamilyRow:
    """One family: its generator or source, and its AUROC against pictures of the other class."""

    family: str
    is_generated: bool
    pictures: int
    #: What was left out together with it.
    unit: str
    fold: int
    auroc: Interval
    #: Against those of the same content only; None where there are none.
    matched: float | None


@dataclass(frozen=True)
class Figures:
    """The figures for pictures whose generator and source no training saw, in 0..1."""

    #: AUROC over the scores of all folds, each calibrated on its own validation pictures.
    pooled: Interval
    #: The same with an interval over generators and sources instead of pictures.
    pooled_by_unit: Interval
    #: Mean AUROC within groups of like content; None where no content has both classes.
    matched: Interval | None
    tpr_at_fpr_5: Interval
    #: Expected calibration error with both classes at the same weight.
    calibration_error: Interval
    contents: list[ContentFigures]
    families: list[FamilyRow]


def figures(scored: Sequence[ScoredSample]) -> Figures:
    """Return the figures of scored pictures of all folds. Raises ValueError when a class is missing."""
    labels = np.array([int(item.sample.generated) for item in scored])
    logits = np.array([item.logit for item in scored])
    probabilities = np.array([item.probability for item in scored])
    units = np.unique([item.unit for item in scored], return_inverse=True)[1]
    ranking = Ranking(logits, labels)
    measured = intervals(
        {
            "pooled": ranking.auroc,
            "tpr_at_fpr_5": lambda counts: ranking.tpr_at_fpr(counts, 0.05),
            "calibration_error": lambda counts: calibration_errors(
                probabilities, labels, counts, balanced=True
            ),
        },
        labels,
    )
    contents, matched = _matched(scored, logits, labels)
    return Figures(
        pooled_by_unit=intervals({"auroc": ranking.auroc}, labels, units=units)["auroc"],
        matched=matched,
        contents=contents,
        families=_families(scored),
        **measured,
    )


def _matched(
    scored: Sequence[ScoredSample], logits: Scores, labels: NDArray[np.int64]
) -> tuple[list[ContentFigures], Interval | None]:
    """Return the figures by content, and the mean AUROC over the contents that have both classes."""
    contents = np.array([item.sample.content for item in scored])
    matched = MatchedRanking(logits, labels, contents)
    rows = [
        ContentFigures(
            content,
            int((labels[own] == 0).sum()),
            int((labels[own] == 1).sum()),
            intervals({"auroc": ranking.auroc}, labels[own])["auroc"],
        )
        for content, (own, ranking) in matched.rankings.items()
    ]
    return rows, intervals({"auroc": matched.auroc}, matched.strata)["auroc"] if rows else None


class MatchedRanking:
    """Scores ranked within each content that has at least `FEWEST` pictures of each class."""

    def __init__(self, logits: Scores, labels: NDArray[np.int64], contents: NDArray[np.str_]) -> None:
        self.rankings: dict[str, tuple[NDArray[np.bool_], Ranking]] = {}
        for content in np.unique(contents):
            own = contents == content
            if content and min((labels[own] == label).sum() for label in (0, 1)) >= FEWEST:
                self.rankings[str(content)] = own, Ranking(logits[own], labels[own])
        #: Resamples are drawn within each content and class, so that none lacks one.
        self.strata = np.unique(np.char.add(contents, labels.astype(str)), return_inverse=True)[1]

    def auroc(self, counts: Counts) -> Scores:
        """Return the mean AUROC over the contents of each resample, (R,); `counts` as for `Ranking`."""
        each = [ranking.auroc(counts[:, own]) for own, ranking in self.rankings.values()]
        return np.asarray(np.mean(each, axis=0))


def _families(scored: Sequence[ScoredSample]) -> list[FamilyRow]:
    kinds = {(item.sample.generated, item.sample.family) for item in scored}
    rows: list[FamilyRow] = []
    for generated, family in sorted(kinds, key=lambda kind: (not kind[0], kind[1])):
        own = [item for item in scored if (item.sample.generated, item.sample.family) == (generated, family)]
        others = [item for item in scored if item.sample.generated != generated]
        rows.append(
            FamilyRow(
                family,
                generated,
                len(own),
                own[0].unit,
                own[0].fold,
                auroc_of([*own, *others]),
                _matched_auroc(own, others),
            )
        )
    return rows


def _matched_auroc(own: Sequence[ScoredSample], others: Sequence[ScoredSample]) -> float | None:
    """Return the share of right orders among pairs of like content, equally weighted by pictures of `own`."""
    shares: list[float] = []
    for item in own:
        like = np.array([other.logit for other in others if other.sample.content == item.sample.content])
        if len(like) and item.sample.content:
            below = float(((like < item.logit) + (like == item.logit) / 2).mean())
            shares.append(below if item.sample.generated else 1 - below)
    return float(np.mean(shares)) if shares else None


def auroc_of(scored: Sequence[ScoredSample]) -> Interval:
    """Return the AUROC, 0..1, of scored pictures of both classes."""
    labels = np.array([int(item.sample.generated) for item in scored])
    ranking = Ranking(np.array([item.logit for item in scored]), labels)
    return intervals({"auroc": ranking.auroc}, labels)["auroc"]
