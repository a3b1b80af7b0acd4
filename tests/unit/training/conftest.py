"""A corpus for the tests of the training."""

from pathlib import Path

import pytest

from tests.striped_corpus import write_striped_corpus


@pytest.fixture(scope="package")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the striped corpus."""
    return write_striped_corpus(tmp_path_factory.mktemp("corpus"))
