"""A running page."""

from collections.abc import Iterator

import pytest

from tests.conftest import MakePicture
from tests.site import RunningSite, StartSite, sites
from worker.embedded.services import EmbeddedServices


@pytest.fixture
def start_site(
    services: EmbeddedServices,
    service_environment: dict[str, str],
    database_environment: dict[str, str],
    make_picture: MakePicture,
) -> Iterator[StartSite]:
    """Provide a function that serves a page on a database of the test's own."""
    with sites(services, {**service_environment, **database_environment}, make_picture) as start:
        yield start


@pytest.fixture
def site(start_site: StartSite) -> RunningSite:
    """Provide a page behind a trusted proxy on this machine."""
    return start_site()
