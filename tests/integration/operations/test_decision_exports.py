"""What people decided, as a refit and a training read it."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner

from detector.bundle.refit import read_decisions
from detector.cli import main as detector_main
from detector.corpus.corpus import read_corpus, training_split
from tests.conftest import MakePicture, StoreObject, settings_of
from tests.verdicts import verdict_event
from worker.cli import main
from worker.contract.messages import DecisionOutcome
from worker.database.database import Database
from worker.reviews.decisions import decide, undo
from worker.reviews.intake import open_review
from worker.reviews.moderators import enrol
from worker.reviews.queue import Claimed, claim

#: Decides a new check of an object, with metadata and score; returns the check's id.
DecideCheck = Callable[..., str]


@pytest.fixture
def environment(
    service_environment: dict[str, str], database_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Set the variables of commands, and return them."""
    variables = {**service_environment, **database_environment, "DNF_REVIEW_UNDO_SECONDS": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def decided(environment: dict[str, str], database: Database) -> DecideCheck:
    """Provide a function that has a check decided."""
    settings = settings_of(environment, review_double_share=0).review

    def new(
        key: str,
        sha256: str,
        outcome: DecisionOutcome,
        *,
        undone: bool = False,
        origin: str = "uncertain",
        **data: object,
    ) -> str:
        check_id = str(uuid4())
        event = verdict_event(check_id, bucket="test-uploads", key=key, sha256=sha256, **data)
        probability = {"review": 1.0, "real": 0.01, "generated": 0.05}[event.data.verdict]
        own = settings if not undone else settings_of(environment, review_undo_seconds=60).review
        with database.transaction() as tx:
            moderator = enrol(tx, "moderator", "Moderator", senior=True)
            review_id = open_review(
                tx, own, event, event.model_dump_json(), origin=origin, probability=probability
            )
            claimed = claim(tx, own, moderator, review_id=review_id)
            assert isinstance(claimed, Claimed)
            found = decide(tx, own, claimed.review_id, claimed.lease, moderator, outcome=outcome)
        if undone:
            with database.transaction() as tx:
                undo(tx, own, found.id, moderator)
        return check_id

    return new


@pytest.mark.usefixtures("environment")
def test_exported_decisions_are_what_a_refit_reads(
    decided: DecideCheck, tmp_path: Path, tiny_bundle: Path
) -> None:
    """Undone ones are left out; a bundle that gave none of the verdicts is refused."""
    ids = [decided(f"{n}.jpg", f"{n:064x}", "real" if n % 2 else "generated", score=n / 10) for n in range(9)]
    decided("undone.jpg", "f" * 64, "real", undone=True)
    exported = CliRunner().invoke(main, ["decisions", "export"])
    assert exported.exit_code == 0, exported.output
    written = CliRunner().invoke(main, ["decisions", "export", str(tmp_path / "decisions.jsonl")])
    assert written.exit_code == 0, written.output
    lines = (tmp_path / "decisions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in exported.output.splitlines()] == [json.loads(line) for line in lines]
    decisions = read_decisions(tmp_path / "decisions.jsonl")
    assert [decision.check_id for decision in decisions] == ids
    assert {decision.sampling_probability for decision in decisions} == {1.0, 0.01, 0.05}
    refused = CliRunner().invoke(
        detector_main,
        ["refit", str(tiny_bundle), str(tmp_path / "decisions.jsonl"), "--out", str(tmp_path / "new")],
    )
    assert refused.exit_code == 2
    assert "other_model" in refused.output


@pytest.mark.usefixtures("environment")
def test_the_corpus_of_decisions_is_one_that_training_reads(
    decided: DecideCheck, make_picture: MakePicture, store_object: StoreObject, tmp_path: Path
) -> None:
    """One uploader's pictures stay together, contents with two labels and changed objects are left out."""

    def stored(seed: int) -> tuple[str, str]:
        picture = make_picture(seed=seed)
        store_object(f"corpus/{seed}.jpg", picture)
        return f"corpus/{seed}.jpg", hashlib.sha256(picture).hexdigest()

    for seed in range(24):
        outcome: DecisionOutcome = "generated" if seed % 2 else "real"
        decided(*stored(seed), outcome, metadata={"user": f"user-{seed // 4}"})
    decided(*stored(0), "real")  # the same content again
    decided(*stored(30), "real")
    decided(*stored(30), "generated")
    decided(*stored(31), "edited")
    decided(stored(32)[0], "e" * 64, "real")
    decided("corpus/gone.jpg", "d" * 64, "real")
    folder = tmp_path / "corpus"
    written = CliRunner().invoke(main, ["decisions", "corpus", str(folder), "--uploader", "user"])
    assert written.exit_code == 0, written.output
    assert "12 photographs, 12 generated pictures" in written.output
    for left_out in ("1 edited", "1 contradictory", "1 digest_mismatch", "1 missing"):
        assert left_out in written.output
    samples = read_corpus(folder)
    assert len(samples) == 24
    assert {sample.family for sample in samples} == {"uploads-real", "uploads-generated"}
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    assert len({row["group"] for row in rows}) == 7  # six uploaders, and the content that came without one
    assert len({(row["group"], row["split"]) for row in rows}) == 7
    assert "user-1" not in (folder / "manifest.csv").read_text()
    split = training_split(samples)
    assert not {s.group for s in split.training} & {s.group for s in split.validation}
    again = CliRunner().invoke(main, ["decisions", "corpus", str(folder)])
    assert again.exit_code == 2
    assert "is not empty" in again.output
