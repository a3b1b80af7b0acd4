"""Connections to the broker over TLS: encrypted, and only with a broker whose certificate is good."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from tests.conftest import PATIENCE
from tests.tls import Authority, TlsProxy
from worker.broker.app import create_app
from worker.broker.connection import connect
from worker.broker.faults import connection_fault
from worker.client import Client, QueueUnreachableError
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import HOST, free_ports
from worker.embedded.valkey import Valkey
from worker.operations.doctor.broker import diagnose_broker
from worker.settings import Settings


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Provide a broker of this module's own."""
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Provide the authority that the settings name."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def strict(valkey: Valkey, authority: Authority) -> Iterator[TlsProxy]:
    """Provide the broker over TLS, for clients with a certificate only."""
    with TlsProxy(valkey.port, authority.issue("broker"), clients=authority) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def trusted(strict: TlsProxy, authority: Authority) -> dict[str, str]:
    """Return the DNF_ variables with which the broker is trusted and trusts."""
    own = authority.issue("client", host="DNS:client")
    return {
        "DNF_REDIS_URL": strict.redis_url,
        "DNF_REDIS_CA_FILE": str(authority.certificate),
        "DNF_REDIS_CERTIFICATE_FILE": str(own.certificate),
        "DNF_REDIS_KEY_FILE": str(own.key),
    }


def _settings(environment: dict[str, str]) -> Settings:
    values: dict[str, Any] = {name.removeprefix("DNF_").lower(): value for name, value in environment.items()}
    return Settings(**values)


def test_a_check_goes_from_producer_to_consumer_over_tls(
    worker_process: Callable[..., Any],
    service_environment: dict[str, str],
    services: EmbeddedServices,
    make_picture: Callable[..., bytes],
    trusted: dict[str, str],
) -> None:
    """Both libraries, Celery's and ours, give a certificate and check the broker's; nothing else changes."""
    services.seaweedfs.client().put_object(Bucket=services.bucket, Key="tls.jpg", Body=make_picture(1))
    worker = worker_process(trusted)
    with Client(_settings({**service_environment, **trusted})) as client:
        check_id = client.submit(services.bucket, "tls.jpg")
        delivered = next(client.verdicts("readers"))
        delivered.ack()
    assert delivered.event.check_id == check_id
    assert worker.stop() == 0


@pytest.fixture(scope="module")
def wrong(
    valkey: Valkey, authority: Authority, strict: TlsProxy, trusted: dict[str, str], tmp_path_factory: Any
) -> Iterator[dict[str, tuple[dict[str, str], str]]]:
    """Return settings by what is wrong with them or their broker, and what is to be said of it."""
    other = Authority(tmp_path_factory.mktemp("other"))
    stranger = other.issue("stranger", host="DNS:client")
    with (
        TlsProxy(valkey.port, other.issue("impostor")) as impostor,
        TlsProxy(valkey.port, authority.issue("elsewhere", host="DNS:elsewhere.example")) as elsewhere,
    ):
        ca = {"DNF_REDIS_CA_FILE": trusted["DNF_REDIS_CA_FILE"]}
        yield {
            "signed by another": ({**ca, "DNF_REDIS_URL": impostor.redis_url}, "DNF_REDIS_CA_FILE"),
            "unknown to the system": ({"DNF_REDIS_URL": impostor.redis_url}, "DNF_REDIS_CA_FILE"),
            "of another host": ({**ca, "DNF_REDIS_URL": elsewhere.redis_url}, "not valid for '127.0.0.1'"),
            "without our own": (
                # kombu keeps connections by their URL: another database has its own.
                {**ca, "DNF_REDIS_URL": strict.redis_url.replace("/0", "/1")},
                "does not accept our certificate: certificate required. DNF_REDIS_CERTIFICATE_FILE",
            ),
            "with a stranger's": (
                {
                    **ca,
                    "DNF_REDIS_URL": strict.redis_url.replace("/0", "/2"),
                    "DNF_REDIS_CERTIFICATE_FILE": str(stranger.certificate),
                    "DNF_REDIS_KEY_FILE": str(stranger.key),
                },
                "does not accept our certificate",
            ),
            "wrong password": (
                {"DNF_REDIS_URL": valkey.url.replace("//", "//nobody:hidden@")},
                "user or password in DNF_REDIS_URL",
            ),
        }


CERTIFICATES = ["signed by another", "unknown to the system", "of another host"]
# A client of TLS 1.3 that has no good certificate sees no more than a connection that is reset.
LATE = ["without our own", "with a stranger's"]


@pytest.fixture(params=[*CERTIFICATES, *LATE, "wrong password"])
def mistake(
    request: pytest.FixtureRequest, wrong: dict[str, tuple[dict[str, str], str]]
) -> tuple[dict[str, str], str]:
    """Return settings with one mistake, and what is to be said of it."""
    return wrong[request.param]


def test_a_worker_does_not_start_with_a_broker_that_is_not_to_be_trusted(
    service_environment: dict[str, str], mistake: tuple[dict[str, str], str]
) -> None:
    """It ends with status 1 and one line that names the setting."""
    variables, said = mistake
    finished = subprocess.run(
        [sys.executable, "-m", "worker.cli", "run"],
        env={**os.environ, **service_environment, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 1, finished.stderr
    assert said in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1
    assert "hidden" not in finished.stderr


@pytest.mark.parametrize("name", ["signed by another", *LATE])
def test_celery_sends_nothing_to_a_broker_that_is_not_to_be_trusted(
    wrong: dict[str, tuple[dict[str, str], str]], valkey: Valkey, name: str
) -> None:
    """Kombu has connections of its own, which check the same."""
    variables, _ = wrong[name]
    with create_app(_settings(variables)) as app, pytest.raises(OperationalError):
        app.send_task("check_image", args=[{}], queue="image-checks.bulk", retry=False)
    with redis.Redis.from_url(valkey.url) as broker:
        assert broker.llen("image-checks.bulk") == 0


@pytest.mark.parametrize("name", ["signed by another", "without our own"])
def test_a_producer_is_told_what_is_wrong_with_the_broker_or_with_itself(
    wrong: dict[str, tuple[dict[str, str], str]], name: str
) -> None:
    """Nothing is enqueued, and the error says what to set, after the tries of one connection."""
    variables, said = wrong[name]
    began = monotonic()
    with Client(_settings(variables)) as client, pytest.raises(QueueUnreachableError, match=re.escape(said)):
        client.submit("uploads", "a.jpg")
    assert monotonic() - began < 20 * PATIENCE


def test_the_doctor_says_what_is_wrong_with_the_broker_or_with_the_settings(
    mistake: tuple[dict[str, str], str],
) -> None:
    """In the one line that is left when the broker cannot be asked."""
    variables, said = mistake
    (line,) = diagnose_broker(_settings(variables))
    assert (line.name, line.outcome) == ("broker", "fault")
    assert said in f"{line.problem} {line.remedy}"


def test_a_broker_that_is_only_away_or_lost_is_not_called_distrustful(trusted: dict[str, str]) -> None:
    """It may come back: whoever asks why a connection to it was lost is told of no setting."""
    settings = _settings(trusted)
    assert connection_fault(ConnectionResetError(), settings.broker) is None
    (port,) = free_ports(1)
    away = settings.model_copy(update={"redis_url": SecretStr(f"rediss://127.0.0.1:{port}/0")})
    assert connection_fault(ConnectionRefusedError(), away.broker) is None


def test_a_broker_that_hangs_up_amid_the_handshake_is_not_called_distrustful(trusted: dict[str, str]) -> None:
    """It does so when it restarts."""
    with socket.create_server((HOST, 0)) as server, ThreadPoolExecutor(1) as threads:
        url = SecretStr(f"rediss://{HOST}:{server.getsockname()[1]}/0")

        def hang_up() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)

        hanging = threads.submit(hang_up)
        settings = _settings(trusted).model_copy(update={"redis_url": url})
        assert connection_fault(ConnectionResetError(), settings.broker) is None
        hanging.result(30)


def test_only_a_connection_that_was_lost_is_asked_for_its_reason(
    wrong: dict[str, tuple[dict[str, str], str]], valkey: Valkey
) -> None:
    """Not one without encryption, nor for an answer that came over it; what it was lost by may lie deeper."""
    variables, said = wrong["signed by another"]
    impostor = _settings(variables)
    assert connection_fault(ConnectionResetError(), Settings(redis_url=valkey.url).broker) is None
    assert connection_fault(redis.ResponseError("MISCONF"), impostor.broker) is None
    error = ValueError()
    error.__context__ = ConnectionResetError()
    assert said in str(connection_fault(error, impostor.broker))


def test_a_user_with_too_few_rights_is_told_so(valkey: Valkey) -> None:
    """The command that was refused is named."""
    settings = Settings(redis_url=valkey.url.replace("//", "//guest:secret@"))
    with redis.Redis.from_url(valkey.url) as admin:
        admin.execute_command("ACL", "SETUSER", "guest", "on", ">secret", "+@connection")
    with connect(settings.broker) as guest, pytest.raises(redis.ResponseError) as refused:
        guest.llen("image-checks")
    assert re.search("too few rights: .*llen", str(connection_fault(refused.value, settings.broker)))


def test_a_running_worker_says_when_its_certificate_is_refused_and_when_it_is_accepted_again(  # noqa: PLR0917 - fixtures
    worker_process: Callable[..., Any],
    service_environment: dict[str, str],
    strict: TlsProxy,
    authority: Authority,
    valkey: Valkey,
    trusted: dict[str, str],
    tmp_path: Path,
) -> None:
    """The broker names another authority, say: one line, no end of the process, and checks go on after it."""
    worker = worker_process(trusted)
    with redis.Redis.from_url(valkey.url) as broker:
        strict.ask_for(Authority(tmp_path / "new"))
        broker.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        (line,) = worker.wait_for_event("broker_fault_found", fault="client_certificate_refused")
        assert "does not accept our certificate" in line["detail"]
    strict.ask_for(authority)
    worker.wait_for_event("broker_recovered", fault="client_certificate_refused")
    with Client(_settings({**service_environment, **trusted})) as client:
        check_id = client.submit(client.settings.upload_bucket, "none.jpg")
        client.wait_for(check_id, timeout_seconds=60 * PATIENCE)
    assert worker.stop() == 0


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false"])
def test_the_check_of_a_certificate_cannot_be_switched_off(option: str) -> None:
    """Neither library is asked to look away by an option in the URL."""
    with pytest.raises(ValueError, match="takes no ssl_ options"):
        Settings(redis_url=f"rediss://127.0.0.1:6379/0?{option}")


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A file that is missing is a wrong setting, said before anything is connected."""
    with pytest.raises(ValueError, match="redis_ca_file"):
        Settings(redis_ca_file=tmp_path / "none.pem")
