"""The figures: what the blind audits say about all verdicts, and the shares of doubles and appeals."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from detector.metrics import share
from tests.integration.reviews.conftest import Claim, NewModerator, OpenReview, Staff
from tests.verdicts import verdict_event
from worker.contract.messages import DecisionOutcome
from worker.database.database import Database
from worker.reviews import statistics
from worker.reviews.appeals import appeal
from worker.reviews.decisions import decide
from worker.reviews.intake import open_review
from worker.reviews.moderators import Moderator
from worker.reviews.sampling import choose
from worker.reviews.statistics import Stratum, false_positive_rate
from worker.settings import ReviewSettings

#: Verdicts by what the picture is: of 60,000 photographs 1 in 100 is flagged, of 8,000 generated pictures
#: 9 in 10 are.
POPULATION = {
    "real": {"generated": 600, "review": 20, "real": 59_380},
    "generated": {"generated": 7_200, "review": 20, "real": 780},
}
TRUE_RATE = 0.01
SCORES = {"generated": 0.9, "review": 0.5, "real": 0.1}


def test_the_weighted_estimate_covers_the_true_rate_where_the_naive_one_does_not(
    database: Database, review_settings: ReviewSettings
) -> None:
    """About 1,000 decisions by people who are right, on 1 % of *real* and 5 % of *generated* verdicts."""
    with database.transaction() as tx:
        decided: Counter[tuple[str, str]] = Counter()
        for truth, verdicts in POPULATION.items():
            for verdict, count in verdicts.items():
                event = verdict_event(score=SCORES[verdict])
                for number in range(count):
                    named = event.model_copy(update={"id": f"{truth}-{verdict}-{number}"})
                    if sample := choose(named, review_settings.audit_shares, b"key"):
                        check = named.data.model_copy(update={"check_id": named.id})
                        open_review(
                            tx,
                            review_settings,
                            named.model_copy(update={"data": check}),
                            "{}",
                            origin=sample.origin,
                            probability=sample.probability,
                        )
                        decided[truth, verdict] += 1
        tx.execute("UPDATE reviews SET state = 'decided', outcome = split_part(check_id, '-', 1)")
        estimate = statistics.false_positives(tx)
    assert 900 < decided.total() < 1100
    assert estimate.rate is not None
    assert estimate.rate.low < TRUE_RATE < estimate.rate.high
    assert estimate.rate.high - estimate.rate.low < 0.01
    photographs = sum(count for (truth, _), count in decided.items() if truth == "real")
    naive = share(decided["real", "generated"], photographs)
    assert naive.low > TRUE_RATE
    assert {(s.verdict, s.probability): s.decided for s in estimate.strata} == {
        (verdict, probability): decided["real", verdict] + decided["generated", verdict]
        for verdict, probability in (("generated", 0.05), ("real", 0.01), ("review", 1.0))
    }


def test_the_interval_covers_the_true_rate_in_nineteen_of_twenty_samples() -> None:
    """At least 90 of 100, with a third of the drawn verdicts not decided yet."""
    chance = np.random.default_rng(3)
    probabilities = {"generated": 0.05, "real": 0.01, "review": 1.0}
    covered = 0
    for _ in range(100):
        strata = []
        for verdict, probability in probabilities.items():
            drawn = {truth: chance.binomial(POPULATION[truth][verdict], probability) for truth in POPULATION}
            decided = {truth: chance.binomial(count, 2 / 3) for truth, count in drawn.items()}
            strata.append(
                Stratum(verdict, probability, sum(drawn.values()), sum(decided.values()), decided["real"])
            )
        rate = false_positive_rate(strata)
        assert rate is not None
        covered += rate.low <= TRUE_RATE <= rate.high
    assert covered >= 90


def test_without_a_flagged_photograph_the_estimate_still_has_an_upper_bound() -> None:
    """And without any photograph there is none."""
    generated = Stratum("generated", 0.05, drawn=100, decided=100, photographs=0)
    rate = false_positive_rate([generated, Stratum("real", 0.01, drawn=400, decided=400, photographs=400)])
    assert rate is not None
    assert rate.value == rate.low == 0
    assert 0 < rate.high < 0.01
    assert false_positive_rate([generated]) is None
    assert false_positive_rate([]) is None


#: Claims and decides what comes first.
Deciding = Callable[[Moderator, DecisionOutcome, ReviewSettings], None]


@pytest.fixture
def deciding(database: Database, claimed: Claim) -> Deciding:
    """Provide a function that claims and decides what comes first."""

    def deciding(who: Moderator, outcome: DecisionOutcome, settings: ReviewSettings) -> None:
        held = claimed(who)
        with database.transaction() as tx:
            decide(tx, settings, held.review_id, held.lease, who, outcome=outcome)
            tx.execute("UPDATE reviews SET available_at = now()")

    return deciding


def test_agreement_is_counted_on_second_opinions_and_overturns_on_appeals(
    database: Database,
    review_settings: ReviewSettings,
    *,
    staff: Staff,
    moderator: NewModerator,
    opened: OpenReview,
    deciding: Deciding,
) -> None:
    """An appeal against an automatic verdict overturns it where the decision differs from it."""
    doubled = replace(review_settings, double_share=1.0)
    for second in ("real", "generated"):
        opened()
        deciding(staff[0], "real", doubled)
        deciding(staff[1], second, doubled)
    deciding(moderator(senior=True), "real", doubled)
    for score, outcome in ((0.9, "real"), (0.95, "generated"), (0.1, "real")):
        event = verdict_event(score=score)
        opened(event)
        with database.transaction() as tx:
            appeal(tx, review_settings, event.data.check_id)
        deciding(staff[0], outcome, review_settings)
    with database.transaction() as tx:
        agreed, overturned = statistics.agreement(tx), statistics.overturned(tx)
        hours = statistics.decisions_by_hour(tx, hours=3)
        queue = statistics.queue(tx)
        ages = statistics.age_of_decided(tx)
    assert (agreed.hits, agreed.count) == (1, 2)
    assert (overturned.hits, overturned.count) == (1, 3)
    assert overturned.interval is not None
    assert len(hours) == 3
    assert sum(count for _, count in hours) == 8
    assert (queue.waiting, queue.oldest_seconds) == (0, 0)
    assert len(ages) in {1, 2}  # a midnight (UTC) may pass between two decisions
