"""Figures of the reviews, none of them about a single person."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from detector.metrics import Interval, share
from worker.database.database import Transaction, only

_DRAWS = 20_000


@dataclass(frozen=True)
class Queue:
    """What waits now."""

    waiting: int
    claimed: int
    overdue: int
    appeals: int
    #: Since the oldest review that waits was opened; 0 without one.
    oldest_seconds: float
    #: Verdicts that the daily limit has held back today (UTC), by origin.
    capped_today: dict[str, int]


@dataclass(frozen=True)
class Share:
    """A share of a number of cases, with its 95 % interval; None without cases."""

    hits: int
    count: int
    interval: Interval | None


@dataclass(frozen=True)
class Stratum:
    """Verdicts of one kind that came to review with one probability."""

    verdict: str
    #: With which each of them was drawn, above 0 and at most 1.
    probability: float
    #: How many were drawn, those held back by the daily limit too.
    drawn: int
    #: Decided ones, without `cannot_tell`.
    decided: int
    #: Decided ones that are photographs.
    photographs: int


@dataclass(frozen=True)
class FalsePositives:
    """An estimate of the share of photographs that the detector flags as generated."""

    #: None as long as no photograph was decided.
    rate: Interval | None
    strata: list[Stratum]


def queue(tx: Transaction) -> Queue:
    """Return what waits now."""
    row = only(
        tx.execute(
            "SELECT count(*) AS waiting, count(*) FILTER (WHERE claimed_until > now()) AS claimed,"
            " count(*) FILTER (WHERE due_at <= now()) AS overdue,"
            " count(*) FILTER (WHERE purpose = 'appeal') AS appeals,"
            " coalesce(extract(epoch FROM now() - min(opened_at)), 0)::float8 AS oldest_seconds"
            " FROM reviews WHERE state = 'waiting' AND available_at <= now()"
        )
    )
    capped = tx.execute("SELECT origin, capped FROM review_days WHERE day = (now() AT TIME ZONE 'UTC')::date")
    return Queue(**row, capped_today={each["origin"]: each["capped"] for each in capped})


def waiting_by_age(tx: Transaction, limits_seconds: Sequence[float]) -> list[tuple[int, int]]:
    """Return how many reviews wait for less than each limit (ascending) and not less than the one before.

    One more number is that of the longest waiting. Beside each: how many of them are overdue.
    """
    rows = tx.execute(
        "SELECT width_bucket(extract(epoch FROM now() - opened_at)::float8, %s::float8[]) AS class,"
        " count(*) AS waiting, count(*) FILTER (WHERE due_at <= now()) AS overdue"
        " FROM reviews WHERE state = 'waiting' AND available_at <= now() GROUP BY class",
        [list(limits_seconds)],
    )
    found = {row["class"]: (row["waiting"], row["overdue"]) for row in rows}
    return [found.get(number, (0, 0)) for number in range(len(limits_seconds) + 1)]


def decisions_by_hour(tx: Transaction, *, hours: int = 48) -> list[tuple[datetime, int]]:
    """Return the number of decisions in each of the last hours, hours without any too, oldest first."""
    rows = tx.execute(
        "SELECT hour, count(decisions.id) AS decided FROM generate_series("
        "  date_trunc('hour', now()) - (%(hours)s - 1) * interval '1 hour', date_trunc('hour', now()),"
        "  interval '1 hour') AS hour"
        " LEFT JOIN decisions ON decided_at >= hour AND decided_at < hour + interval '1 hour'"
        "  AND undone_at IS NULL"
        " GROUP BY hour ORDER BY hour",
        {"hours": hours},
    )
    return [(row["hour"], row["decided"]) for row in rows]


def age_of_decided(tx: Transaction, *, days: int = 7) -> list[tuple[datetime, float]]:
    """Return for each of the last days (UTC) the median seconds from opening to first decision, oldest first.

    Days without decisions are left out.
    """
    rows = tx.execute(
        "SELECT date_trunc('day', decisions.decided_at, 'UTC') AS day,"
        " percentile_cont(0.5) WITHIN GROUP ("
        "  ORDER BY extract(epoch FROM decisions.decided_at - opened_at)::float8) AS seconds"
        " FROM decisions JOIN reviews ON reviews.id = review_id"
        " WHERE decisions.revision = 1 AND NOT second_opinion AND undone_at IS NULL"
        " AND decisions.decided_at >= now() - %s * interval '1 day' GROUP BY day ORDER BY day",
        [days],
    )
    return [(row["day"], row["seconds"]) for row in rows]


def agreement(tx: Transaction, *, days: int = 90) -> Share:
    """Return the share of second opinions that agree with the first."""
    row = tx.execute(
        "SELECT count(*) AS count, count(*) FILTER (WHERE first.outcome = second.outcome) AS hits"
        " FROM decisions AS second JOIN decisions AS first ON first.review_id = second.review_id"
        "  AND first.revision = second.revision AND NOT first.second_opinion AND first.undone_at IS NULL"
        " WHERE second.second_opinion AND second.undone_at IS NULL"
        " AND second.decided_at >= now() - %s * interval '1 day'",
        [days],
    ).fetchone()
    return _share(row)


def overturned(tx: Transaction, *, days: int = 90) -> Share:
    """Return the share of decided appeals after which the outcome is another one than before.

    Before a check's first decision its outcome is the automatic verdict; *review* is none, and not counted.
    """
    row = tx.execute(
        "SELECT count(*) AS count, count(*) FILTER (WHERE answered.outcome <> before.outcome) AS hits"
        " FROM decisions AS answered JOIN reviews ON reviews.id = answered.review_id"
        " LEFT JOIN decisions AS earlier ON earlier.id = answered.supersedes,"
        " LATERAL (SELECT coalesce(earlier.outcome, nullif(reviews.verdict, 'review')) AS outcome) AS before"
        " WHERE answered.appeal_id IS NOT NULL AND answered.undone_at IS NULL AND before.outcome IS NOT NULL"
        " AND answered.decided_at >= now() - %s * interval '1 day'",
        [days],
    ).fetchone()
    return _share(row)


def false_positives(tx: Transaction, *, days: int = 90, model: str | None = None) -> FalsePositives:
    """Return the estimated false positive rate on photographs among the verdicts of the last days.

    `model` is a model's name and version; None: all.
    """
    rows = tx.execute(
        "SELECT verdict, sampling_probability AS probability,"
        " round(sum(coalesce((opened + capped)::float8 / nullif(opened, 0), 1)))::int AS drawn,"
        " count(*) FILTER (WHERE outcome IN ('real', 'generated', 'edited')) AS decided,"
        " count(*) FILTER (WHERE outcome = 'real') AS photographs"
        " FROM reviews LEFT JOIN review_days ON review_days.origin = reviews.origin"
        "  AND day = (opened_at AT TIME ZONE 'UTC')::date"
        " WHERE sampling_probability IS NOT NULL AND occurred_at >= now() - %(days)s * interval '1 day'"
        " AND (%(model)s::text IS NULL OR model = %(model)s)"
        " GROUP BY verdict, sampling_probability ORDER BY verdict, sampling_probability",
        {"days": days, "model": model},
    )
    strata = [Stratum(**row) for row in rows]
    return FalsePositives(false_positive_rate(strata), strata)


def false_positive_rate(strata: Sequence[Stratum]) -> Interval | None:
    """Return the share of photographs that are flagged as generated, with its 95 % interval.

    Each stratum stands for one over its probability times as many verdicts as were drawn, and has among all
    of them the share of photographs that it has among the decided ones. The interval has the quantiles of
    the rate over 20,000 draws of that number (gamma) and that share (beta, both with Jeffreys' prior), so
    that a stratum without a photograph has one too. Undecided reviews are taken to be like the decided ones
    of their stratum. None without a decided photograph.
    """
    known = [stratum for stratum in strata if stratum.decided]
    if not any(stratum.photographs for stratum in known):
        return None
    random = np.random.default_rng(0)
    drawn = np.array([stratum.drawn for stratum in known], dtype=float)
    weights = 1 / np.array([stratum.probability for stratum in known])
    photographs = np.array([stratum.photographs for stratum in known], dtype=float)
    others = np.array([stratum.decided for stratum in known], dtype=float) - photographs
    flagged = np.array([stratum.verdict == "generated" for stratum in known])
    # Where every verdict comes to review their number is known.
    numbers = np.where(weights > 1, random.gamma(drawn + 0.5, size=(_DRAWS, len(known))), drawn)
    shares = random.beta(photographs + 0.5, others + 0.5, size=(_DRAWS, len(known)))
    amounts = numbers * weights * shares
    rates = amounts[:, flagged].sum(axis=1) / amounts.sum(axis=1)
    expected = drawn * weights * photographs / (photographs + others)
    low, high = np.quantile(rates, [0.025, 0.975])
    value = float(expected[flagged].sum() / expected.sum())
    return Interval(value, min(float(low), value), max(float(high), value))


def _share(row: dict[str, int] | None) -> Share:
    hits, cases = (row["hits"], row["count"]) if row else (0, 0)
    return Share(hits, cases, share(hits, cases) if cases else None)
