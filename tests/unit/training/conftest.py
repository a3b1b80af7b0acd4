"""A corpus for the tests of the training, and interruptions."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from tests.striped_corpus import write_striped_corpus


@pytest.fixture(scope="package")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the striped corpus."""
    return write_striped_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def interrupted_at() -> Iterator[Callable[[str, int], None]]:
    """Return a function that makes the training raise KeyboardInterrupt when it logs an event of a step."""
    before = structlog.get_config()["processors"]

    def arm(name: str, step: int) -> None:
        def interrupt(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
            if (event["event"], event.get("step")) == (name, step):
                structlog.configure(processors=before)
                raise KeyboardInterrupt
            return event

        structlog.configure(processors=[interrupt, *before])

    yield arm
    structlog.configure(processors=before)
