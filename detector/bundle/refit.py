"""Refit: new calibration and thresholds for a bundle, from what people decided about its verdicts."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detector.bundle.calibration import PlattScaling, fit_platt
from detector.bundle.files import MODEL_CARD_FILE, Bundle, write_manifest
from detector.bundle.proportion import keeps_budget, pictures_needed, upper_bound
from detector.bundle.thresholds import Thresholds

RefitReason = Literal[
    "malformed", "other_model", "verdict_not_sampled", "one_class", "too_few_photographs", "folder_not_empty"
]
Verdicts = NDArray[np.str_]
Floats = NDArray[np.float64]

_VERDICTS = ("real", "review", "generated")
# A score of 0 or 1 is a logit that a float cannot tell from infinity.
_SMALLEST_SCORE = 1e-15


class RefitRefusedError(ValueError):
    """The decisions do not suffice for a refit; `reason` is one of `RefitReason`, `str()` is the detail."""

    def __init__(self, reason: RefitReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: RefitReason = reason


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Model(_Read):
    digest: str


class DecidedPicture(_Read):
    """What the detector said of a picture, and what a person decided: `data` of `image.decision.v1`."""

    check_id: str
    #: Of several decisions on one check the one with the highest revision counts.
    revision: int = Field(ge=1)
    #: `real`, `generated`, or one that says neither.
    outcome: str
    #: The detector's verdict and score, 0..1.
    verdict: Literal["real", "review", "generated"]
    score: float = Field(ge=0, le=1)
    model: _Model
    #: Of coming to review by chance; None for one that did not, after an appeal for example.
    sampling_probability: Annotated[float, Field(gt=0, le=1)] | None


class _DecisionEvent(_Read):
    type: Literal["image.decision.v1"]
    data: DecidedPicture


@dataclass(frozen=True)
class Rates:
    """Weighted shares, 0..1, at a pair of thresholds."""

    #: Of photographs that are flagged as generated, with its upper 95 % bound.
    flagged: float
    flagged_bound: float
    #: Of photographs that are flagged or go to review, with its upper 95 % bound.
    not_real: float
    not_real_bound: float
    #: Of generated pictures that are flagged.
    detected: float


@dataclass(frozen=True)
class Refit:
    """A new operating point, and what it rests on."""

    calibration: PlattScaling
    thresholds: Thresholds
    #: Decisions used, by outcome.
    photographs: int
    generated: int
    #: Decisions that were not used, by the reason.
    unused: dict[str, int]
    #: At the thresholds of the bundle, and at the new ones.
    before: Rates
    after: Rates


def read_decisions(path: Path) -> list[DecidedPicture]:
    """Return the decisions in a file of one event `image.decision.v1` a line, as published.

    Raises OSError and `RefitRefusedError`.
    """
    decisions = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                decisions.append(_DecisionEvent.model_validate_json(line).data)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                field = ".".join(str(part) for part in first["loc"]) or "line"
                raise RefitRefusedError(
                    "malformed", f"{path}, line {number}: {field}: {first['msg']}."
                ) from error
    return decisions


def refit(
    bundle: Bundle, decisions: Iterable[DecidedPicture], *, max_fpr: float, max_not_real: float
) -> Refit:
    """Fit calibration and thresholds to decisions, each weighted by one over its sampling probability.

    The thresholds are the lowest whose upper 95 % bounds keep the budgets: of photographs at most the share
    `max_fpr` (0..1) is flagged, and at most `max_not_real` (0..1) is flagged or goes to review. Outcomes
    other than *real* and *generated*, decisions about another model's verdicts, and those that did not come
    by chance are not used. Raises `RefitRefusedError` when the others do not suffice.
    """
    used, unused = _usable(decisions, bundle)
    labels = np.array([int(decision.outcome == "generated") for decision in used])
    photographs = int((labels == 0).sum())
    if photographs < (needed := pictures_needed(max_fpr)):
        raise RefitRefusedError(
            "too_few_photographs",
            f"A bound of {max_fpr:.2%} needs {needed} photographs; the decisions have {photographs}.",
        )
    if photographs == len(used):
        raise RefitRefusedError("one_class", "The decisions have no generated picture.")
    verdicts = np.array([decision.verdict for decision in used])
    if missing := [verdict for verdict in _VERDICTS if verdict not in verdicts]:
        raise RefitRefusedError(
            "verdict_not_sampled",
            f"There is no decision on a picture with the verdict {missing[0]}: nothing is known of the "
            "photographs among them. Raise the share of blind audits.",
        )
    weights = np.array([1 / (decision.sampling_probability or 1) for decision in used])
    old = bundle.manifest.calibration
    scores = np.array([decision.score for decision in used])
    clipped = np.clip(scores, _SMALLEST_SCORE, 1 - _SMALLEST_SCORE)
    logits = (np.log(clipped / (1 - clipped)) - old.offset) / old.slope
    calibration = fit_platt(logits, labels, weights)
    sample = _Sample(
        np.array([calibration.probability(logit) for logit in logits]), labels, weights, verdicts
    )
    thresholds = Thresholds(
        review_from=sample.lowest_threshold(max(max_fpr, max_not_real)),
        generated_from=sample.lowest_threshold(max_fpr),
    )
    return Refit(
        calibration=calibration,
        thresholds=thresholds,
        photographs=photographs,
        generated=len(used) - photographs,
        unused=unused,
        before=_Sample(scores, labels, weights, verdicts).rates(bundle.manifest.thresholds),
        after=sample.rates(thresholds),
    )


def write_refitted(bundle: Bundle, result: Refit, folder: Path, *, version: str, max_fpr: float) -> Bundle:
    """Write a copy of the bundle with the new operating point to a new folder.

    Figures that were measured at the old thresholds are left out, and the model card says what they belong
    to. Raises OSError, `RefitRefusedError` for a folder that is not empty, and `BundleError`.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RefitRefusedError("folder_not_empty", f"{folder} is not empty.")
    for name in bundle.manifest.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, target)
    old = bundle.manifest
    origin = f"{old.name} {old.version}, digest {bundle.digest}"
    if (card := bundle.folder / MODEL_CARD_FILE).is_file():
        note = (
            f"> Version {version}: calibration and thresholds were refitted to decisions of moderators. What"
            f" follows is the model card of {origin}; its figures are those of its own thresholds.\n\n"
        )
        (folder / MODEL_CARD_FILE).write_text(note + card.read_text(encoding="utf-8"), encoding="utf-8")
    facts = {
        "photographs": result.photographs,
        "generated": result.generated,
        "max_fpr": max_fpr,
        "photographs_flagged": result.after.flagged,
        "photographs_flagged_upper_95": result.after.flagged_bound,
        "photographs_not_real": result.after.not_real,
        "photographs_not_real_upper_95": result.after.not_real_bound,
        "generated_detected": result.after.detected,
    }
    manifest = old.model_copy(
        update={
            "version": version,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "calibration": result.calibration,
            "thresholds": result.thresholds,
            "figures": {"refit": json.loads(json.dumps(facts))},
            "provenance": {**old.provenance, "refitted_from": origin},
        }
    )
    return write_manifest(folder, manifest)


def _usable(
    decisions: Iterable[DecidedPicture], bundle: Bundle
) -> tuple[list[DecidedPicture], dict[str, int]]:
    """Return the decisions to use and how many others there are, by the reason."""
    newest: dict[str, DecidedPicture] = {}
    unused: Counter[str] = Counter()
    for decision in decisions:
        earlier = newest.get(decision.check_id)
        if earlier is not None:
            unused["superseded"] += 1
        if earlier is None or decision.revision >= earlier.revision:
            newest[decision.check_id] = decision
    used = []
    for decision in newest.values():
        if decision.model.digest != bundle.digest:
            unused["other_model"] += 1
        elif decision.sampling_probability is None:
            unused["not_by_chance"] += 1
        elif decision.outcome not in {"real", "generated"}:
            unused[decision.outcome] += 1
        else:
            used.append(decision)
    if not used and unused["other_model"]:
        raise RefitRefusedError(
            "other_model", f"All decisions are about another detector than the one with {bundle.digest}."
        )
    return used, dict(unused)


@dataclass(frozen=True)
class _Sample:
    """Probabilities, labels (1 = generated), weights and verdicts of decided pictures, (N,) each."""

    probabilities: Floats
    labels: NDArray[np.int64]
    weights: Floats
    verdicts: Verdicts

    def lowest_threshold(self, budget: float) -> float:
        """Return the lowest threshold up to which the bound keeps the budget, from the highest one downwards.

        Each threshold is a test, and the first that fails ends the sequence, so that the bound of the last
        one holds although many were tried. Raises `RefitRefusedError` when the first one fails.
        """
        photographs = np.unique(self.probabilities[self.labels == 0])[::-1]
        chosen: float | None = None
        for probability in photographs:
            threshold = min(float(np.nextafter(probability, 2.0)), 1.0)
            if not keeps_budget(*self._counted(threshold), budget):
                break
            chosen = threshold
        if chosen is None:
            raise RefitRefusedError(
                "too_few_photographs",
                f"The bound is {self.bound(threshold):.2%} even with no photograph counted: "
                f"more blind audits are needed for a budget of {budget:.2%}.",
            )
        return chosen

    def bound(self, threshold: float) -> float:
        """Return the upper 95 % bound of the share of photographs that reach the threshold."""
        return upper_bound(*self._counted(threshold))

    def _counted(self, threshold: float) -> tuple[Floats, NDArray[np.bool_], float]:
        """Return the photographs' weights, which reach the threshold, and the greatest weight there."""
        reaching = self.probabilities >= threshold
        real = self.labels == 0
        # A photograph that reaches the threshold has the weight of the verdicts there.
        largest = float(self.weights[reaching | (self.verdicts == "generated")].max())
        return self.weights[real], reaching[real], largest

    def share(self, label: int, threshold: float) -> float:
        """Return the weighted share of a class that reaches the threshold."""
        own = self.labels == label
        reaching = own & (self.probabilities >= threshold)
        return float(self.weights[reaching].sum() / self.weights[own].sum())

    def rates(self, thresholds: Thresholds) -> Rates:
        """Return the shares at a pair of thresholds."""
        return Rates(
            flagged=self.share(0, thresholds.generated_from),
            flagged_bound=self.bound(thresholds.generated_from),
            not_real=self.share(0, thresholds.review_from),
            not_real_bound=self.bound(thresholds.review_from),
            detected=self.share(1, thresholds.generated_from),
        )
