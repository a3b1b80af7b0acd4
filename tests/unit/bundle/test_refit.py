"""Refit of calibration and thresholds to decisions, against populations whose truth is known."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from detector.bundle.calibration import fit_platt
from detector.bundle.files import MODEL_CARD_FILE, Bundle, open_bundle
from detector.bundle.proportion import pictures_needed, upper_bound
from detector.bundle.refit import DecidedPicture, RefitRefusedError, refit, write_refitted
from detector.bundle.thresholds import Thresholds
from detector.cli import main
from detector.policy import decide

# The probabilities with which a population's verdicts come to review.
SHARES = {"real": 0.02, "review": 0.2, "generated": 0.1}


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    """Provide a bundle whose calibration is the plain sigmoid and whose thresholds are 0.4 and 0.6."""
    return open_bundle(tiny_bundle)


class Population:
    """20,000 photographs and 4,000 generated pictures, and the scores that a detector gave them.

    Of the photographs 2.3 % reach the threshold 0.6 of the bundle.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.photographs = 1 / (1 + np.exp(-self._rng.normal(-2.0, 1.2, 20_000)))
        self.generated = 1 / (1 + np.exp(-self._rng.normal(0.8, 1.5, 4_000)))

    def decisions(self, bundle: Bundle) -> Iterator[DecidedPicture]:
        """Yield what a person decides on the verdicts that come to review by chance, about 1,000."""
        for label, scores in (("real", self.photographs), ("generated", self.generated)):
            shares = np.select(
                [scores >= 0.6, scores >= 0.4], [SHARES["generated"], SHARES["review"]], SHARES["real"]
            )
            for number in np.flatnonzero(self._rng.random(len(scores)) < shares):
                yield decided(f"{label}-{number}", label, float(scores[number]), bundle)


def decided(check_id: str, outcome: str, score: float, bundle: Bundle, **fields: object) -> DecidedPicture:
    """Return a decision on the bundle's verdict for this score."""
    verdict = decide(score, bundle.manifest.thresholds)
    known = {
        "check_id": check_id,
        "revision": 1,
        "outcome": outcome,
        "verdict": verdict,
        "score": score,
        "model": {"digest": bundle.digest},
        "sampling_probability": SHARES[verdict],
    }
    return DecidedPicture.model_validate(known | fields)


def equally_sampled(bundle: Bundle, photographs: int) -> list[DecidedPicture]:
    """Return all decisions of a platform that reviews everything: no photograph is flagged."""
    decisions = [decided("p", "real", 0.5, bundle, sampling_probability=1)]
    decisions += [
        decided(f"p-{number}", "real", 0.3 * number / photographs, bundle, sampling_probability=1)
        for number in range(photographs - 1)
    ]
    return decisions + [
        decided(f"g-{number}", "generated", 0.7 + number / 1000, bundle, sampling_probability=1)
        for number in range(20)
    ]


def test_with_equal_weights_the_bound_is_that_of_clopper_and_pearson() -> None:
    """At the bound so few of the pictures are counted with a probability of 5 % (binomial distribution)."""
    for counted, count in [(0, 299), (3, 500), (25, 60)]:
        chosen = np.arange(count) < counted
        for weight in (1.0, 50.0):
            bound = upper_bound(np.full(count, weight), chosen, weight)
            chance = sum(
                math.comb(count, k) * bound**k * (1 - bound) ** (count - k) for k in range(counted + 1)
            )
            assert chance == pytest.approx(0.05, abs=1e-6)
    assert pictures_needed(0.01) == 299
    assert upper_bound(np.ones(299), np.zeros(299, bool), 1.0) <= 0.01
    assert upper_bound(np.ones(298), np.zeros(298, bool), 1.0) > 0.01


def test_weights_count_a_picture_as_often_as_it_stands_for_others() -> None:
    """Platt scaling of weighted pictures is that of a set in which each occurs so often."""
    rng = np.random.default_rng(0)
    logits, counts = rng.normal(0, 2, 300), rng.integers(1, 5, 300)
    labels = (rng.random(300) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    weighted = fit_platt(logits, labels, counts.astype(np.float64))
    repeated = fit_platt(np.repeat(logits, counts), np.repeat(labels, counts))
    assert weighted.slope == pytest.approx(repeated.slope, rel=1e-3)
    assert weighted.offset == pytest.approx(repeated.offset, rel=1e-3)


def test_a_refit_keeps_its_budget_on_the_photographs_that_nobody_reviewed(bundle: Bundle) -> None:
    """Of 30 populations at most 4 exceed 4 %: with a bound of 95 % five or more have a chance of 2 %.

    The naive share, of the reviewed photographs without weights, is more than twice the true one.
    """
    exceeded, naive, before = 0, [], []
    for seed in range(30):
        population = Population(seed)
        decisions = list(population.decisions(bundle))
        result = refit(bundle, decisions, max_fpr=0.04, max_not_real=0.15)
        # The true share at the new thresholds, over all photographs.
        logits = np.log(population.photographs / (1 - population.photographs))
        scaled = result.calibration.slope * logits + result.calibration.offset
        truth = (1 / (1 + np.exp(-scaled)) >= result.thresholds.generated_from).mean()
        exceeded += truth > 0.04
        assert result.after.flagged <= result.after.flagged_bound <= 0.04
        photographs = [decision for decision in decisions if decision.outcome == "real"]
        naive.append(np.mean([decision.verdict == "generated" for decision in photographs]))
        before.append(result.before.flagged)
    assert exceeded <= 4
    true_before = np.mean([(Population(seed).photographs >= 0.6).mean() for seed in range(3)])
    assert np.mean(before) == pytest.approx(true_before, rel=0.1)
    assert np.mean(naive) > 2 * true_before


def test_a_budget_of_one_percent_is_refused_for_298_photographs_and_kept_for_299(bundle: Bundle) -> None:
    """With 299 and none above the threshold the bound is 0.997 %."""
    result = refit(bundle, equally_sampled(bundle, 299), max_fpr=0.01, max_not_real=0.10)
    assert result.after.flagged == 0
    assert result.after.flagged_bound == pytest.approx(0.00997, abs=1e-5)
    with pytest.raises(RefitRefusedError, match="needs 299 photographs; the decisions have 298") as refused:
        refit(bundle, equally_sampled(bundle, 298), max_fpr=0.01, max_not_real=0.10)
    assert refused.value.reason == "too_few_photographs"


def test_unequal_weights_need_more_photographs(bundle: Bundle) -> None:
    """300 photographs, of which each flagged one would stand for fifty, bound nothing at 1 %."""
    decisions = [
        decision.model_copy(update={"sampling_probability": 0.02 if decision.verdict == "generated" else 1.0})
        for decision in equally_sampled(bundle, 300)
    ]
    with pytest.raises(RefitRefusedError, match="more blind audits are needed") as refused:
        refit(bundle, decisions, max_fpr=0.01, max_not_real=0.10)
    assert refused.value.reason == "too_few_photographs"


def test_decisions_that_say_nothing_of_the_budget_are_counted_and_not_used(bundle: Bundle) -> None:
    """An appeal, another model's verdict, an edited picture, and a revision that was superseded."""
    decisions = equally_sampled(bundle, 400)
    expected = refit(bundle, decisions, max_fpr=0.01, max_not_real=0.10)
    others = [
        decided("appeal", "real", 0.9, bundle, sampling_probability=None),
        decided("other", "real", 0.9, bundle, model={"digest": "0" * 64}),
        decided("edited", "edited", 0.9, bundle),
        decided("unclear", "cannot_tell", 0.9, bundle),
        decided("p-1", "generated", 0.9, bundle, sampling_probability=1, revision=1),
    ]
    latest = [decision.model_copy(update={"revision": 2}) for decision in decisions]
    result = refit(bundle, [*latest, *others], max_fpr=0.01, max_not_real=0.10)
    assert (result.thresholds, result.photographs) == (expected.thresholds, 400)
    assert result.unused == {
        "not_by_chance": 1,
        "other_model": 1,
        "edited": 1,
        "cannot_tell": 1,
        "superseded": 1,
    }


@pytest.mark.parametrize(
    ("reason", "left_out"),
    [("verdict_not_sampled", "review"), ("one_class", "generated")],
)
def test_a_refit_is_refused_where_a_part_of_the_photographs_is_unknown(
    bundle: Bundle, reason: str, left_out: str
) -> None:
    """Without decisions on verdicts of one kind, or without generated pictures."""
    decisions = [
        decision
        for decision in equally_sampled(bundle, 400)
        if left_out not in (decision.verdict, decision.outcome)
    ]
    with pytest.raises(RefitRefusedError) as refused:
        refit(bundle, decisions, max_fpr=0.01, max_not_real=0.10)
    assert refused.value.reason == reason


def test_a_refit_writes_a_new_bundle_and_leaves_the_old_one(bundle: Bundle, tmp_path: Path) -> None:
    """The networks are the same; calibration, thresholds and digest are new, and the origin is named."""
    before = {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()}
    result = refit(bundle, equally_sampled(bundle, 400), max_fpr=0.01, max_not_real=0.10)
    written = write_refitted(bundle, result, tmp_path / "new", version="2", max_fpr=0.01)
    assert {path: path.read_bytes() for path in before} == before
    assert written.manifest.files == bundle.manifest.files
    assert (written.manifest.version, written.manifest.thresholds) == ("2", result.thresholds)
    assert written.manifest.calibration == result.calibration
    assert bundle.digest in str(written.manifest.provenance["refitted_from"])
    assert written.digest != bundle.digest
    with pytest.raises(RefitRefusedError, match="is not empty"):
        write_refitted(bundle, result, tmp_path / "new", version="2", max_fpr=0.01)


def test_the_command_writes_the_bundle_and_says_what_it_rests_on(bundle: Bundle, tmp_path: Path) -> None:
    """The shipped bundle's card goes along, with a note; a malformed line is named in one line."""
    shipped = open_bundle(Path(str(bundle.folder)))
    (tmp_path / "decisions.jsonl").write_text(
        "".join(
            json.dumps({"type": "image.decision.v1", "id": "1", "data": decision.model_dump()}) + "\n"
            for decision in equally_sampled(shipped, 400)
        )
    )
    arguments = [
        "refit",
        str(bundle.folder),
        str(tmp_path / "decisions.jsonl"),
        "--out",
        str(tmp_path / "new"),
    ]
    finished = CliRunner().invoke(main, arguments)
    assert finished.exit_code == 0, finished.output
    assert "400 photographs, 20 generated pictures" in finished.output
    new = open_bundle(tmp_path / "new")
    assert f"digest {new.digest}" in finished.output
    assert isinstance(new.manifest.thresholds, Thresholds)
    (tmp_path / "decisions.jsonl").write_text(json.dumps({"type": "image.verdict.v1", "data": {}}) + "\n")
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert "malformed: " in refused.output
    assert "line 1: type" in refused.output


def test_the_model_card_says_to_which_thresholds_its_figures_belong(bundle: Bundle, tmp_path: Path) -> None:
    """A reader of the new bundle must not take the old figures for its own."""
    (bundle.folder / MODEL_CARD_FILE).write_text("# Card\n")
    try:
        result = refit(bundle, equally_sampled(bundle, 400), max_fpr=0.01, max_not_real=0.10)
        written = write_refitted(bundle, result, tmp_path / "new", version="2", max_fpr=0.01)
    finally:
        (bundle.folder / MODEL_CARD_FILE).unlink()
    card = (written.folder / MODEL_CARD_FILE).read_text()
    assert bundle.digest in card
    assert card.endswith("# Card\n")
