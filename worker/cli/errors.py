"""What a user of the commands got wrong, and what the network does to them, in one line each."""

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


def settings_in_force() -> Settings:
    """Return the settings of the environment. Raises `WrongUsageError`, naming the variable at fault."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise WrongUsageError(f"DNF_{name}: {first['msg']}" if name else first["msg"]) from error


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what the network and the user's input do to us into one line."""
    from worker.broker.connection import distrust
    from worker.client import QueueFullError, QueueUnreachableError
    from worker.storage import StorageRejectedError, StorageUnavailableError

    try:
        yield
    except redis.RedisError as error:
        detail = distrust(error, settings_in_force()) or f"Redis cannot be reached: {error}"
        raise click.ClickException(detail) from error
    except (QueueUnreachableError, QueueFullError, StorageUnavailableError, StorageRejectedError) as error:
        raise click.ClickException(str(error)) from error
    except ValidationError as error:
        raise WrongUsageError(first_fault(error)) from error
