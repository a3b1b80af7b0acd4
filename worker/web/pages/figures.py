"""Figures of the whole: queue, pace, agreement, errors. None is about a single person."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query
from markupsafe import Markup
from starlette.responses import Response

from worker.database.database import Transaction
from worker.reviews import statistics
from worker.web import plots
from worker.web.pages.frame import frame
from worker.web.pages.rendering import html
from worker.web.pages.review import Reader
from worker.web.site import CurrentSite

router = APIRouter(include_in_schema=False)

_PERIODS = (1, 7, 30, 90)
_HOUR = 3600.0
# Limits of the classes in hours, and what they are called.
_AGES = ((1, "< 1 h"), (4, "1-4 h"), (12, "4-12 h"), (24, "12-24 h"), (48, "1-2 d"), (96, "2-4 d"))
_OLDEST = "> 4 d"
# Bars of an hour each; more would be thinner than a line.
_MOST_HOURS = 168


@dataclass(frozen=True)
class Figure:
    """A figure of the page."""

    title: str
    headline: str
    plot: Markup
    caption: str


@router.get("/figures")
def figures_page(
    site: CurrentSite, person: Reader, days: Annotated[int, Query(ge=1, le=3650)] = 7
) -> Response:
    """Show the figures of the last days."""
    with site.database.transaction() as tx:
        page = frame(tx, site, person, "/figures")
        figures = [
            _queue_age(tx),
            _pace(tx, days),
            _time_to_decision(tx, days),
            _share(
                "Agreement on doubles",
                "agree",
                statistics.agreement(tx, days=days),
                f"Second opinions of the last {_in_days(days)} that have the first one's outcome",
            ),
            _share(
                "Overturned by appeals",
                "overturned",
                statistics.overturned(tx, days=days),
                f"Appeals decided in the last {_in_days(days)} that changed the outcome",
            ),
            _false_positives(tx, days),
        ]
    return html("figures.html.j2", page=page, figures=figures, days=days, periods=_PERIODS)


def _queue_age(tx: Transaction) -> Figure:
    queue = statistics.queue(tx)
    classes = statistics.waiting_by_age(tx, [_HOUR * hours for hours, _ in _AGES])
    labels = [*(label for _, label in _AGES), _OLDEST]
    bars = [
        plots.Bar(label, waiting, late=overdue > 0)
        for label, (waiting, overdue) in zip(labels, classes, strict=True)
    ]
    capped = sum(queue.capped_today.values())
    caption = f"{queue.waiting} wait, {queue.overdue} of them overdue; coloured classes have overdue ones."
    if capped:
        caption += f" Today's limit held back {capped} more."
    return Figure(
        "Age of the queue",
        f"{queue.oldest_seconds / _HOUR:.1f} h" if queue.waiting else "empty",
        plots.bar_plot(bars, title="Waiting items by age", x_axis="age", y_axis="items"),
        f"The headline is the age of the oldest. {caption}",
    )


def _pace(tx: Transaction, days: int) -> Figure:
    hours = min(24 * days, _MOST_HOURS)
    counted = statistics.decisions_by_hour(tx, hours=hours)
    axis = "%H:00" if days == 1 else "%b %d"
    bars = [plots.Bar(f"{hour:{axis}}", number, name=f"{hour:%Y-%m-%d %H:00}") for hour, number in counted]
    total = sum(number for _, number in counted)
    return Figure(
        "Decisions an hour",
        f"{total / hours:.1f}",
        plots.bar_plot(bars, title="Decisions in each hour", x_axis="hour (UTC)", y_axis="decisions"),
        f"{total} decisions in {hours} hours; the headline is their mean.",
    )


def _time_to_decision(tx: Transaction, days: int) -> Figure:
    medians = statistics.age_of_decided(tx, days=days)
    bars = [
        plots.Bar(f"{day:%b %d}", seconds / _HOUR, name=f"{day:%Y-%m-%d}, hours") for day, seconds in medians
    ]
    return Figure(
        "Time to the first decision",
        f"{medians[-1][1] / _HOUR:.1f} h" if medians else "no decisions yet",
        plots.bar_plot(bars, title="Median by day", x_axis="day (UTC)", y_axis="hours", whole=False)
        if bars
        else Markup(),
        "Median of each day, from the opening of an item to its first decision; the headline is that of the"
        " last day.",
    )


def _share(title: str, label: str, found: statistics.Share, caption: str) -> Figure:
    interval = found.interval
    rows = [plots.Interval(label, interval.value, interval.low, interval.high)] if interval else []
    return Figure(
        title,
        f"{interval.value:.0%}" if interval else "no cases yet",
        plots.interval_plot(rows, title=title, x_axis="per cent, with 95 % interval", whole=True)
        if rows
        else Markup(),
        f"{caption}: {found.hits} of {found.count}.",
    )


def _false_positives(tx: Transaction, days: int) -> Figure:
    found = statistics.false_positives(tx, days=days)
    decided = sum(stratum.decided for stratum in found.strata)
    photographs = sum(stratum.photographs for stratum in found.strata)
    rate = found.rate
    rows = [plots.Interval("photographs", rate.value, rate.low, rate.high)] if rate else []
    return Figure(
        "Photographs flagged as generated",
        f"{rate.value:.1%}" if rate else "no photographs yet",
        plots.interval_plot(rows, title="False positive rate", x_axis="per cent, with 95 % interval")
        if rows
        else Markup(),
        f"Estimated for all verdicts of the last {_in_days(days)} from {decided} decided reviews,"
        f" {photographs} of them photographs; each counts one over the probability with which it was drawn.",
    )


def _in_days(days: int) -> str:
    return "day" if days == 1 else f"{days} days"
