"""Calibrate a bundle on a finished cross-validation: on pictures of generators and sources that are new."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.bundle.calibration import PlattScaling, fit_platt, thresholds_for_budget
from detector.bundle.files import Bundle, BundleError, open_bundle, write_manifest
from detector.bundle.thresholds import Thresholds
from detector.corpus.corpus import Sample
from detector.crossvalidation import CrossvalidationError, finished_report
from detector.detector import Detector, Dtype
from detector.evaluation.conditions import DEGRADATIONS
from detector.progress import Progress
from detector.scoring import Rewrite, ScoreJournal, as_is, score_samples

#: Shares of photographs, 0..1, that may be flagged, and that may be flagged or sent to review.
FLAGGED, REVIEWED = 0.01, 0.10
#: Most photographs that are scored under each condition.
PHOTOGRAPHS = 1000
_CALIBRATED_ON = "calibrated_on"
_AS_UPLOADED = "as uploaded"

Logits = NDArray[np.float64]


@dataclass(frozen=True)
class ConditionThresholds:
    """The thresholds that keep the budgets on photographs under one condition."""

    condition: str
    photographs: int
    thresholds: Thresholds


def recalibrate(
    bundle: Bundle, crossvalidation: Path, *, dtype: Dtype = "auto", device: str = "auto"
) -> list[ConditionThresholds]:
    """Fit the calibration and the thresholds of a bundle to the scores of a cross-validation of its recipe.

    The log-odds that the folds gave to pictures which they never saw become the bundle's probabilities. Each
    fold then scores photographs that it never saw as uploaded and under every degradation, at its strongest
    of the quick ones. From the highest threshold that one of these conditions needs on, a picture is
    *generated*: nobody is accused for what a resize or a codec did. From the one for uploads on it goes to
    review, which only costs time. The bundle's manifest is rewritten, and with it its digest. Returns the
    thresholds of each condition. Raises `CrossvalidationError` when the folder holds no finished
    cross-validation of the bundle's feature, views and network, and for a bundle that was calibrated on one
    before.
    """
    if _CALIBRATED_ON in bundle.manifest.provenance:
        raise CrossvalidationError(f"{bundle.folder} is calibrated on a cross-validation already")
    report = _report(crossvalidation, bundle)
    pictures = report["pictures"]
    logits = np.array([picture["logit"] for picture in pictures])
    labels = np.array([int(picture["generated"]) for picture in pictures])
    new = fit_platt(logits, labels)
    scores = {"as cross-validated": logits[labels == 0]}
    scores |= _under_conditions(pictures, crossvalidation, dtype, device)
    conditions = [
        ConditionThresholds(name, len(found), _thresholds(found, new)) for name, found in scores.items()
    ]
    own = bundle.manifest.calibration
    manifest = bundle.manifest.model_copy(
        update={
            # The folds' log-odds were calibrated as the bundle's were, each on its own validation pictures.
            "calibration": PlattScaling(
                slope=new.slope * own.slope, offset=new.slope * own.offset + new.offset
            ),
            "thresholds": Thresholds(
                review_from=next(
                    each.thresholds.review_from for each in conditions if each.condition == _AS_UPLOADED
                ),
                generated_from=max(each.thresholds.generated_from for each in conditions),
            ),
            # They were measured at other thresholds.
            "figures": {},
            "provenance": {
                **bundle.manifest.provenance,
                _CALIBRATED_ON: {
                    "pictures_of_new_generators_and_sources": len(labels),
                    "photographs_flagged": FLAGGED,
                    "photographs_flagged_or_reviewed": REVIEWED,
                    "photographs": {each.condition: each.photographs for each in conditions},
                },
            },
        }
    )
    write_manifest(bundle.folder, manifest)
    return conditions


def _report(folder: Path, bundle: Bundle) -> dict[str, Any]:
    report = finished_report(folder)
    own = bundle.manifest
    for name, manifest in ((path.name, _fold(path).manifest) for path in _folds(folder)):
        if (manifest.feature, manifest.preprocessing, manifest.classifier) != (
            own.feature,
            own.preprocessing,
            own.classifier,
        ):
            raise CrossvalidationError(f"{folder}/{name} has another feature, other views or another network")
    return report


def _folds(folder: Path) -> list[Path]:
    return sorted(folder.glob("fold-*"), key=lambda path: int(path.name.removeprefix("fold-")))


def _fold(folder: Path) -> Bundle:
    try:
        return open_bundle(folder / "bundle")
    except BundleError as error:
        raise CrossvalidationError(f"{folder} has no finished bundle: {error}") from error


def _conditions() -> Iterator[tuple[str, Rewrite]]:
    yield _AS_UPLOADED, as_is
    for degradation in DEGRADATIONS:
        strength = degradation.quick[-1]
        yield f"{degradation.name} {strength:g}", degradation.at(strength)


def _under_conditions(
    pictures: list[dict[str, Any]], folder: Path, dtype: Dtype, device: str
) -> dict[str, Logits]:
    """Return the log-odds of photographs by condition, each by a fold that never saw it."""
    photographs: dict[int, list[Sample]] = {}
    for picture in pictures:
        if not picture["generated"]:
            path = Path(picture["path"])
            photographs.setdefault(picture["fold"], []).append(
                Sample(path, generated=False, family=path.parent.name, group=path.name)
            )
    share = PHOTOGRAPHS / sum(map(len, photographs.values()))
    chosen = {fold: _some(samples, share) for fold, samples in photographs.items()}
    conditions = dict(_conditions())
    progress = Progress("photographs_scored", len(conditions) * sum(map(len, chosen.values())))
    journal = ScoreJournal(folder / "conditions.jsonl")
    found: dict[str, list[float]] = {name: [] for name in conditions}
    for fold, samples in chosen.items():
        detector = Detector.load(_fold(folder / f"fold-{fold}"), device=device, dtype=dtype)
        calibration = detector.bundle.manifest.calibration
        for name, rewrite in conditions.items():
            scored = score_samples(
                detector, samples, rewrite, condition=name, journal=journal, progress=progress.advance
            )
            found[name] += [calibration.slope * item.logit + calibration.offset for item in scored]
    return {name: np.array(values) for name, values in found.items()}


def _some(samples: list[Sample], share: float) -> list[Sample]:
    """Return a share of the samples, the same in every run and independent of the order of their names."""
    ordered = sorted(samples, key=lambda sample: hashlib.sha256(sample.path.name.encode()).digest())
    return ordered[: max(1, round(min(1.0, share) * len(ordered)))]


def _thresholds(logits: Logits, calibration: PlattScaling) -> Thresholds:
    probabilities = np.array([calibration.probability(logit) for logit in logits])
    return thresholds_for_budget(probabilities, flagged=FLAGGED, reviewed=REVIEWED)
