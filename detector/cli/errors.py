"""How a mistake is reported: one line on standard error and exit status 2."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from detector.bundle.files import BundleError


class WrongUsageError(click.ClickException):
    """A mistake in the arguments or in what they name: exit status 2."""

    exit_code = 2


@contextmanager
def plain_errors() -> Iterator[None]:
    """Report a bundle that cannot be loaded or written in one line."""
    try:
        yield
    except BundleError as error:
        raise WrongUsageError(f"{error.reason}: {error}") from error
