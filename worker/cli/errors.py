"""How the commands report errors: one line on standard error and an exit status."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
import redis
from pydantic import ValidationError

from worker.contract.messages import first_fault
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.database.database import Database

# For finding out why the broker cannot be reached.
_DIAGNOSIS_SECONDS = 4.0


class WrongUsageError(click.ClickException):
    """A mistake in the arguments or the environment: exit status 2."""

    exit_code = 2


def current_settings() -> Settings:
    """Return the settings of the environment. Raises `WrongUsageError`, which names the wrong variable."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise WrongUsageError(f"DNF_{name}: {first['msg']}" if name else first["msg"]) from error


@contextmanager
def opened_database() -> "Iterator[Database]":
    """Open the database of the environment, and report what is wrong with it in one line: exit status 1."""
    from worker.database.database import Database
    from worker.database.errors import DatabaseUnavailableError, SchemaError

    try:
        with Database.open(current_settings().database) as database:
            yield database
    except (DatabaseUnavailableError, SchemaError) as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def reported_errors() -> Iterator[None]:
    """Report errors of the network and of the user's input in one line: exit status 1 or 2."""
    from worker.client.errors import QueueFullError, QueueUnreachableError, unreachable
    from worker.storage import StorageRejectedError, StorageUnavailableError

    try:
        yield
    except redis.RedisError as error:
        detail = unreachable(error, current_settings().broker, seconds=_DIAGNOSIS_SECONDS)
        raise click.ClickException(str(detail)) from error
    except (QueueUnreachableError, QueueFullError, StorageUnavailableError, StorageRejectedError) as error:
        raise click.ClickException(str(error)) from error
    except ValidationError as error:
        raise WrongUsageError(first_fault(error)) from error
