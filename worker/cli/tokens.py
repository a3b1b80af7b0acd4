"""dnf-worker tokens: who may call the HTTP API."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

from detector.terminal import Group, echo, echo_json, echo_record
from worker.cli.errors import opened_database

# The scopes of `worker.database.tokens`, which loads the database's library.
_SCOPES = ("checks:write", "checks:read", "appeals", "intake", "webhooks")


@click.group(cls=Group)
def tokens() -> None:
    """Make, list and revoke the tokens of machines that call the HTTP API."""


@tokens.command(
    epilog="\b\nExample:\n  dnf-worker tokens create platform --scope checks:write --scope checks:read"
)
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(_SCOPES))
@click.option("--days", type=click.IntRange(1, 3650), help="Expires after so many days; by default never.")
def create(name: str, *, scopes: Sequence[str], days: int | None) -> None:
    """Make a token and print it, this once."""
    from worker.database.tokens import SCOPES, create_token
    from worker.reviews import audit

    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
    with opened_database() as database, database.transaction() as tx:
        chosen = [scope for scope in SCOPES if scope in scopes]
        token, text = create_token(tx, name, chosen, by="cli", expires_at=expires_at)
        audit.record(tx, "cli", "token_created", token.id, {"name": name, "scopes": chosen})
    echo(text)


@tokens.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one token per line.")
def listed(*, as_json: bool) -> None:
    """List the tokens with their scopes, newest first; those that are revoked or have expired too."""
    from worker.database.tokens import tokens as all_tokens

    with opened_database() as database, database.transaction() as tx:
        found = all_tokens(tx)
    for token in found:
        if as_json:
            times = {
                name: getattr(token, name) and getattr(token, name).isoformat()
                for name in ("created_at", "expires_at", "revoked_at")
            }
            echo_json({**vars(token), "scopes": list(token.scopes), **times})
        else:
            state = "revoked" if token.revoked_at else "expired" if token.expired else "valid"
            echo_record(
                [token.id, f"{token.created_at:%Y-%m-%d}", f"{state:<7}"],
                [token.name, " ".join(token.scopes)],
            )


@tokens.command()
@click.argument("token_id")
def revoke(token_id: str) -> None:
    """Revoke a token; every process of the API has noticed it within ten seconds."""
    from worker.database.tokens import revoke_token
    from worker.reviews import audit

    with opened_database() as database, database.transaction() as tx:
        if not revoke_token(tx, token_id):
            raise click.ClickException(f"there is no token {token_id} in force")
        audit.record(tx, "cli", "token_revoked", token_id)
    echo(f"revoked {token_id}")
