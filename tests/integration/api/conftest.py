"""The API of a module, on its own broker and database, without a worker unless a test starts one."""

from collections.abc import Callable, Iterator

import pytest
import redis

from tests.conftest import settings_of
from tests.served_page import Caller, bearer, served, token
from worker.database.database import Database
from worker.embedded.postgres import PostgreSQL
from worker.settings import Settings

#: Returns a caller with a token that has these scopes.
CallerWith = Callable[..., Caller]


@pytest.fixture(scope="module")
def module_database(postgres: PostgreSQL, request: pytest.FixtureRequest) -> Iterator[Database]:
    """Provide a migrated database that the module's tests share."""
    name = f"module_{request.module.__name__.rpartition('.')[2]}"
    postgres.create_database(name, template="migrated")
    with Database.open(settings_of(postgres.environment(name)).database) as database:
        yield database
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def api_settings(settings: Settings) -> Settings:
    """Return the settings of the API: at most 2,000 checks wait, an upload has at most a megabyte."""
    return settings.model_copy(
        update={
            "max_queue_length": 2000,
            "max_bytes": 1 << 20,
            "web_requests_per_minute": 100_000,
            "web_trusted_proxies": ("127.0.0.1",),
        }
    )


@pytest.fixture(scope="module")
def port(api_settings: Settings, module_database: Database) -> Iterator[int]:
    """Serve the API."""
    with served(api_settings, module_database) as port:
        yield port


@pytest.fixture(scope="module")
def caller_with(port: int, module_database: Database) -> CallerWith:
    """Provide a function that returns callers."""
    return lambda *scopes: Caller(port, bearer(token(module_database, *scopes)))


@pytest.fixture(scope="module")
def caller(caller_with: CallerWith) -> Caller:
    """Provide a caller who may do everything that a token may."""
    return caller_with()


@pytest.fixture(scope="module")
def module_broker(settings: Settings) -> Iterator[redis.Redis]:
    """Provide a client of the module's broker."""
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
        yield client
