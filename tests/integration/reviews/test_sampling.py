"""Which verdicts come to people, and what the database makes of them."""

from collections import Counter
from dataclasses import replace
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from tests.verdicts import rejection_event, verdict_event
from worker.contract.messages import VerdictEvent, read_event
from worker.database.database import Database
from worker.reviews.intake import Stored, sampling_key, store
from worker.reviews.listing import Filters, find
from worker.reviews.listing import page as listed
from worker.reviews.sampling import choose
from worker.settings import ReviewSettings


def _stored(database: Database, review_settings: ReviewSettings, event: VerdictEvent) -> Stored:
    with database.transaction() as tx:
        return store(tx, review_settings, event, event.model_dump_json(), key=sampling_key(tx))


def test_every_uncertain_verdict_and_the_set_shares_of_the_others_are_chosen() -> None:
    """Of 20,000 verdicts each share is within four standard deviations; another key draws others."""
    shares = {"real": 0.01, "generated": 0.05}
    for score, verdict, share in ((0.1, "real", 0.01), (0.9, "generated", 0.05)):
        event = verdict_event(score=score)
        drawn = [event.model_copy(update={"id": f"{number:064x}"}) for number in range(20_000)]
        samples = [choose(each, shares, b"key") for each in drawn]
        chosen = [sample for sample in samples if sample]
        spread = 4 * (share * (1 - share) * len(drawn)) ** 0.5
        assert abs(len(chosen) - share * len(drawn)) < spread, verdict
        assert {(sample.origin, sample.probability) for sample in chosen} == {("audit", share)}
        assert samples == [choose(each, shares, b"key") for each in drawn]
        assert samples != [choose(each, shares, b"another") for each in drawn]
    uncertain = choose(verdict_event(score=0.5), {}, b"key")
    assert uncertain is not None
    assert (uncertain.origin, uncertain.probability) == ("uncertain", 1.0)


def test_an_event_that_is_delivered_again_opens_no_second_review(
    database: Database, review_settings: ReviewSettings
) -> None:
    event = verdict_event()
    assert _stored(database, review_settings, event).review_id is not None
    assert _stored(database, review_settings, event) == Stored()


def test_beyond_the_daily_limit_verdicts_are_counted_and_kept_for_appeals(
    database: Database, review_settings: ReviewSettings
) -> None:
    """Audits have a limit of their own, so that a flood of uncertain verdicts ends no estimate."""
    limited = replace(review_settings, daily_limit=2, audit_shares={"real": 1.0})
    outcomes = [_stored(database, limited, verdict_event()) for _ in range(5)]
    audits = [_stored(database, limited, verdict_event(score=0.1)) for _ in range(3)]
    assert [outcome.capped for outcome in outcomes] == [False, False, True, True, True]
    assert [outcome.capped for outcome in audits] == [False, False, True]
    with database.transaction() as tx:
        days = {
            row["origin"]: (row["opened"], row["capped"]) for row in tx.execute("SELECT * FROM review_days")
        }
        (checks,) = tx.execute("SELECT count(*) AS checks FROM checks")
    assert days == {"uncertain": (2, 3), "audit": (2, 1)}
    assert checks["checks"] == 8


def test_a_limit_of_nothing_opens_nothing(database: Database, review_settings: ReviewSettings) -> None:
    outcome = _stored(database, replace(review_settings, daily_limit=0), verdict_event())
    assert outcome == Stored("uncertain", capped=True)


def test_a_rejection_is_kept_and_opens_no_review(database: Database, review_settings: ReviewSettings) -> None:
    event = rejection_event()
    with database.transaction() as tx:
        assert store(tx, review_settings, event, event.model_dump_json(), key=b"key") == Stored()
        (row,) = tx.execute("SELECT type, verdict FROM checks")
    assert (row["type"], row["verdict"]) == ("image.rejected.v1", None)


def test_a_check_that_is_judged_again_is_neither_reviewed_nor_counted_twice(
    database: Database, review_settings: ReviewSettings
) -> None:
    """By another model, say, after its first event has expired."""
    event = verdict_event("check")
    assert _stored(database, review_settings, event).review_id is not None
    again = verdict_event("check").model_copy(update={"id": "of-another-model"})
    assert _stored(database, review_settings, again) == Stored()
    with database.transaction() as tx:
        (day,) = tx.execute("SELECT opened, capped FROM review_days")
    assert (day["opened"], day["capped"]) == (1, 0)


def test_the_newest_event_of_a_check_is_kept(database: Database, review_settings: ReviewSettings) -> None:
    """An older one that is read late, by another relay, does not replace it."""
    old = verdict_event("check", score=0.1)
    new = verdict_event("check", score=0.2).model_copy(update={"id": "newer"})
    for event in (new, old):
        _stored(database, review_settings, event)
    with database.transaction() as tx:
        (row,) = tx.execute("SELECT event_id FROM checks")
    assert row["event_id"] == "newer"


_HOSTILE = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metadata=st.dictionaries(st.text(max_size=8), _HOSTILE, max_size=4), key=st.text(min_size=1, max_size=30)
)
def test_whatever_a_consumer_can_read_can_be_stored_and_listed(
    database: Database, review_settings: ReviewSettings, metadata: dict[str, JsonValue], key: str
) -> None:
    """PostgreSQL refuses U+0000 and JSON's exotic numbers; the event itself is kept as it is."""
    event = verdict_event(key=key.replace("\0", "") + "\0", metadata=metadata)
    raw = event.model_dump_json()
    read = read_event(raw)
    assert isinstance(read, VerdictEvent)
    with database.transaction() as tx:
        stored = store(tx, review_settings, read, raw, key=b"key")
        assert stored.review_id is not None
        item = find(tx, review_id=stored.review_id)
        (row,) = tx.execute("SELECT event FROM reviews WHERE id = %s", [stored.review_id])
    assert item is not None
    assert item.key.endswith("\N{REPLACEMENT CHARACTER}")
    assert row["event"] == raw


def test_lists_show_what_their_filters_let_through(
    database: Database, review_settings: ReviewSettings
) -> None:
    """Score band, verdict, policy, metadata; a search looks for id, digest and part of the key."""
    events = [
        verdict_event("one", score=0.35, metadata={"region": "eu", "age": 7}, key="2026/cat.jpg"),
        verdict_event("two", score=0.6, metadata={"region": "us"}, policy="strict"),
        verdict_event("three", score=0.75, sha256="5" * 64),
    ]
    for event in events:
        _stored(database, review_settings, event)

    def found(**filters: object) -> list[str]:
        with database.transaction() as tx:
            return [item.check_id for item in listed(tx, Filters(view="waiting", **filters)).items]  # type: ignore[arg-type]

    assert found() == ["one", "three", "two"]  # by distance to 0.3 and 0.8
    assert found(min_score=0.5, max_score=0.6) == ["two"]
    assert found(policy="strict") == found(metadata_key="region", metadata_value="us") == ["two"]
    assert found(metadata_key="region") == ["one", "two"]
    assert found(metadata_key="age", metadata_value="7") == ["one"]
    assert found(search="two") == ["two"]
    assert found(search="/cat") == ["one"]
    assert found(search="5" * 64) == ["three"]
    assert found(search="100%") == found(verdict="real") == []


def test_pages_of_a_list_neither_repeat_nor_leave_out_a_review(
    database: Database, review_settings: ReviewSettings
) -> None:
    """In the order of the queue and from the newest on, with equal scores too; an export has all of them."""
    names = [f"check-{number}" for number in range(23)]
    for number, name in enumerate(names):
        _stored(database, review_settings, verdict_event(name, score=0.5 + number % 3 / 100))
    for view in ("waiting", "all"):
        seen: list[str] = []
        after: str | None = None
        while True:
            with database.transaction() as tx:
                part = listed(tx, Filters(view=view), after=after, size=5)  # type: ignore[arg-type]
            seen += [item.check_id for item in part.items]
            if (after := part.next) is None:
                break
        assert Counter(seen) == Counter(names)
    for wrong in ("no cursor", f"now~later~{uuid4()}", "a~b~c~d~e"):
        with pytest.raises(ValueError, match=r"cursor|UUID"), database.transaction() as tx:
            listed(tx, Filters(), after=wrong)
