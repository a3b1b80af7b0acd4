"""What every page has around its content."""

from dataclasses import dataclass
from typing import Any

from worker.contract.messages import DecisionBasis, DecisionOutcome
from worker.database.database import Transaction
from worker.reviews import statistics
from worker.reviews.details import Undoable, undoable
from worker.reviews.moderators import Moderator, preferences
from worker.web.identity import Person
from worker.web.pages.rendering import BASES, OUTCOMES
from worker.web.pictures import OVERVIEW_SIDE
from worker.web.preferences import ACTIONS, Action, Preferences, stored_preferences
from worker.web.site import Site

# Without a key or a pointer for so long, a claim is not renewed although its page is visible.
_IDLE_SECONDS = 900


@dataclass(frozen=True)
class Link:
    """An entry of the navigation."""

    href: str
    label: str


@dataclass(frozen=True)
class Page:
    """Who reads a page, and what its frame shows."""

    person: Person
    moderator: Moderator
    preferences: Preferences
    #: Path of the entry of the navigation that is current.
    current: str
    counts: statistics.Queue
    undoable: Undoable | None
    lease_seconds: float
    actions: tuple[Action, ...] = ACTIONS
    outcomes: tuple[DecisionOutcome, ...] = OUTCOMES
    bases: tuple[DecisionBasis, ...] = BASES

    @property
    def navigation(self) -> list[Link]:
        """The pages that this person may see."""
        links = [Link("/", "Review"), Link("/items", "Items"), Link("/figures", "Figures")]
        if self.person.may("auditor", "admin"):
            links.append(Link("/audit", "Audit"))
        if self.person.may("admin"):
            links.append(Link("/webhooks", "Webhooks"))
        return links

    @property
    def script_settings(self) -> dict[str, Any]:
        """What the module in the browser needs to know."""
        return {
            "keys_on": self.preferences.keys_on,
            "keys": self.preferences.by_key(),
            "auto_claim": self.preferences.auto_claim,
            "break_minutes": self.preferences.break_minutes,
            "overview_side": OVERVIEW_SIDE,
            "idle_seconds": _IDLE_SECONDS,
        }


def frame(tx: Transaction, site: Site, person: Person, current: str) -> Page:
    """Return the frame of a page."""
    moderator = site.moderators.of(tx, person)
    return Page(
        person=person,
        moderator=moderator,
        preferences=stored_preferences(preferences(tx, moderator)),
        current=current,
        counts=statistics.queue(tx),
        undoable=undoable(tx, moderator),
        lease_seconds=site.settings.review.lease_seconds,
    )


@dataclass(frozen=True)
class CountsOnly:
    """The part of a frame that live updates replace."""

    counts: statistics.Queue
