"""Errors as problem details (RFC 9457): for programs by `type` and `status`, for people by `detail`."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


class ProblemError(Exception):
    """The request cannot be carried out: an HTTP status, a reason from a closed list, and words for people.

    `members` are extension members of the problem, `headers` those of the answer.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    def response(self) -> "ProblemResponse":
        """Return the answer."""
        return ProblemResponse(self.status, self.reason, self.detail, headers=self.headers, **self.members)


class ProblemResponse(Response):
    """A problem as `application/problem+json`; `reason` is in its `type`, and by itself in `reason`."""

    media_type = "application/problem+json"

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        document = {
            "type": f"urn:dnf:problem:{reason}",
            "title": reason.replace("_", " ").capitalize(),
            "status": status,
            "reason": reason,
            "detail": detail,
            **members,
        }
        super().__init__(json.dumps(document), status, headers)
