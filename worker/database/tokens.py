"""Tokens of machines: shown once, stored as digests, each for a few scopes."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from worker.database.database import Transaction

Scope = Literal["checks:write", "checks:read", "appeals", "intake", "webhooks"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

#: How a token begins, for whoever finds one, and for scanners of secrets.
TOKEN_PREFIX = "dnf_"  # noqa: S105 - the beginning of every token  # nosec B105
MAX_NAME = 100


@dataclass(frozen=True)
class Token:
    """What is known of a token; the token itself is not."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @property
    def expired(self) -> bool:
        """Whether it has expired, by this machine's clock."""
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)


def create_token(
    tx: Transaction, name: str, scopes: Sequence[Scope], *, by: str, expires_at: datetime | None = None
) -> tuple[Token, str]:
    """Add a token and return it with its text, which is shown once."""
    token_id = secrets.token_hex(4)
    text = f"{TOKEN_PREFIX}{token_id}_{secrets.token_urlsafe(32)}"
    row = tx.execute(
        "INSERT INTO api_tokens (id, name, sha256, scopes, created_by, expires_at)"
        " VALUES (%s, %s, %s, %s, %s, %s)"
        " RETURNING id, name, scopes, created_by, created_at, expires_at, revoked_at",
        [token_id, name[:MAX_NAME], _digest(text), list(dict.fromkeys(scopes)), by, expires_at],
    ).fetchone()
    assert row is not None  # noqa: S101 - an insert returns its row  # nosec B101
    return _token(row), text


def tokens(tx: Transaction) -> list[Token]:
    """Return all tokens, newest first, with those that are revoked or have expired."""
    rows = tx.execute(
        "SELECT id, name, scopes, created_by, created_at, expires_at, revoked_at"
        " FROM api_tokens ORDER BY created_at DESC, id"
    ).fetchall()
    return [_token(row) for row in rows]


def valid_token(tx: Transaction, text: str) -> Token | None:
    """Return the token with this text; None for one that is unknown, revoked or has expired."""
    row = tx.execute(
        "SELECT id, name, scopes, created_by, created_at, expires_at, revoked_at FROM api_tokens"
        " WHERE sha256 = %s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())",
        [_digest(text)],
    ).fetchone()
    return None if row is None else _token(row)


def revoke_token(tx: Transaction, token_id: str) -> bool:
    """End a token at once; return whether it was there and in force."""
    return bool(
        tx.execute(
            "UPDATE api_tokens SET revoked_at = now() WHERE id = %s AND revoked_at IS NULL", [token_id]
        ).rowcount
    )


def _digest(text: str) -> bytes:
    # 256 random bits need no slow hash.
    return hashlib.sha256(text.encode()).digest()


def _token(row: dict[str, Any]) -> Token:
    return Token(**{**row, "scopes": tuple(row["scopes"])})
