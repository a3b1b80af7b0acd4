"""What can be wrong with the database."""

from typing import Literal

from worker.contract.messages import UnavailableError

SchemaFault = Literal[
    "not_configured", "unmigrated", "changed", "newer", "role_missing", "audit_writable", "owner_is_role"
]


class DatabaseUnavailableError(UnavailableError):
    """PostgreSQL does not answer, or not in time; nothing was committed as far as is known."""


class SchemaError(Exception):
    """The database cannot be used as it is; `reason` is one of `SchemaFault`, `str()` says what to do."""

    def __init__(self, reason: SchemaFault, detail: str) -> None:
        super().__init__(detail)
        self.reason: SchemaFault = reason
