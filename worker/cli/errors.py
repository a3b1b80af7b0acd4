"""How the commands report errors: one line on standard error and an exit status."""

from collections.abc import Iterator
from contextlib import contextmanager

import click
import redis
from pydantic import ValidationError

from worker.contract.messages import first_fault
from worker.settings import Settings


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
def reported_errors() -> Iterator[None]:
    """Report errors of the network and of the user's input in one line: exit status 1 or 2."""
    from worker.broker.faults import connection_fault
    from worker.client import QueueFullError, QueueUnreachableError
    from worker.storage import StorageRejectedError, StorageUnavailableError

    try:
        yield
    except redis.RedisError as error:
        detail = str(
            connection_fault(error, current_settings().broker) or f"Redis cannot be reached: {error}"
        )
        raise click.ClickException(detail) from error
    except (QueueUnreachableError, QueueFullError, StorageUnavailableError, StorageRejectedError) as error:
        raise click.ClickException(str(error)) from error
    except ValidationError as error:
        raise WrongUsageError(first_fault(error)) from error
