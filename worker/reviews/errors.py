"""Why something cannot be done with a review."""

from typing import Literal

ReviewFault = Literal[
    "not_found",
    "lease_expired",
    "not_yours",
    "already_decided",
    "too_late_to_undo",
    "not_allowed",
    "not_judged",
    "claimed",
]

_DETAILS: dict[ReviewFault, str] = {
    "not_found": "There is no such review.",
    "lease_expired": "Your claim has ended, so the decision was not taken: claim the review again.",
    "not_yours": "Somebody else has claimed this review.",
    "already_decided": "This review has been decided already.",
    "too_late_to_undo": "The decision can no longer be undone: it has been published, or the review went on.",
    "not_allowed": "You are not allowed to do this.",
    "not_judged": "The upload was rejected and has no verdict that people could review.",
    "claimed": "Somebody is looking at this review now.",
}


class ReviewError(Exception):
    """A refusal, with one of a closed list of reasons; `str()` says it in words to the moderator."""

    def __init__(self, reason: ReviewFault, detail: str | None = None) -> None:
        super().__init__(detail or _DETAILS[reason])
        self.reason: ReviewFault = reason
