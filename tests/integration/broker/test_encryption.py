"""Connections to the broker over TLS: encrypted, and only to a broker with a valid certificate."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from tests.conftest import (
    NULL_WORKER,
    PATIENCE,
    MakePicture,
    RunningWorker,
    StartWorker,
    StoreObject,
    settings_of,
)
from tests.tls import Authority, TlsProxy
from worker.broker.app import create_app
from worker.broker.connection import connect
from worker.broker.faults import connection_fault
from worker.client import Client, QueueUnreachableError
from worker.embedded.startup import HOST, free_ports
from worker.embedded.valkey import Valkey
from worker.operations.doctor.broker import diagnose_broker
from worker.settings import Settings


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Provide the certificate authority that the settings name."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def strict(valkey: Valkey, authority: Authority) -> Iterator[TlsProxy]:
    """Provide the broker over TLS; it requires client certificates."""
    with TlsProxy(valkey.port, authority.issue("broker"), clients=authority) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def trusted(strict: TlsProxy, authority: Authority) -> dict[str, str]:
    """Return DNF_ variables with a valid certificate on either side."""
    own = authority.issue("client", host="DNS:client")
    return {
        "DNF_REDIS_URL": strict.redis_url,
        "DNF_REDIS_CA_FILE": str(authority.certificate),
        "DNF_REDIS_CERTIFICATE_FILE": str(own.certificate),
        "DNF_REDIS_KEY_FILE": str(own.key),
    }


@pytest.fixture(scope="module")
def worker(worker_process: StartWorker, trusted: dict[str, str]) -> RunningWorker:
    """Provide a worker that is connected over TLS."""
    return worker_process({**trusted, "NULL_WATCH_SECONDS": "0.5"}, module=NULL_WORKER)


def test_a_check_goes_from_producer_to_consumer_over_tls(
    worker: RunningWorker,
    store_object: StoreObject,
    make_picture: MakePicture,
) -> None:
    """Celery's connections and ours present a certificate and verify the broker's."""
    store_object("tls.jpg", make_picture(1))
    with Client(settings_of(worker.environment)) as client:
        check_id = client.submit(client.settings.upload_bucket, "tls.jpg")
        delivered = next(client.verdicts("readers"))
        delivered.ack()
    assert delivered.event.check_id == check_id


@pytest.fixture(scope="module")
def wrong(
    valkey: Valkey, authority: Authority, strict: TlsProxy, trusted: dict[str, str], tmp_path_factory: Any
) -> Iterator[dict[str, tuple[dict[str, str], str]]]:
    """Return DNF_ variables with one mistake each, and the text that reports it."""
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
                # kombu pools connections by URL: another database has a pool of its own.
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
# In TLS 1.3 a client whose certificate is refused sees only a connection that is reset.
REFUSED_LATE = ["without our own", "with a stranger's"]


MISTAKES = [*CERTIFICATES, *REFUSED_LATE, "wrong password"]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_worker_does_not_start_with_an_untrusted_broker(
    service_environment: dict[str, str], wrong: dict[str, tuple[dict[str, str], str]], name: str
) -> None:
    """It exits with status 1 and one line that names the setting, with a supervisor and without one."""
    variables, detail = wrong[name]
    options = [] if name == MISTAKES[0] else ["--unsupervised"]
    finished = subprocess.run(
        [sys.executable, "-m", "worker.cli", "run", *options],
        env={**os.environ, **service_environment, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 1, finished.stderr
    assert detail in finished.stderr
    # Beside the log.
    assert len([line for line in finished.stderr.splitlines() if not line.startswith("{")]) == 1
    assert "hidden" not in finished.stderr


@pytest.mark.parametrize("name", ["signed by another", *REFUSED_LATE])
def test_celery_sends_nothing_to_an_untrusted_broker(
    wrong: dict[str, tuple[dict[str, str], str]], valkey: Valkey, name: str
) -> None:
    """Kombu opens connections of its own."""
    variables, _ = wrong[name]
    with create_app(settings_of(variables)) as app:
        app.conf.broker_connection_timeout = 0.5 * PATIENCE
        with pytest.raises(OperationalError):
            app.send_task("check_image", args=[{}], queue="image-checks.bulk", retry=False)
    with redis.Redis.from_url(valkey.url) as broker:
        assert broker.llen("image-checks.bulk") == 0


@pytest.fixture(scope="module")
def submitted(wrong: dict[str, tuple[dict[str, str], str]]) -> Iterator[dict[str, Future[float]]]:
    """Submit a check with each of two mistakes at once; return the seconds that each took by mistake."""

    def submit(name: str) -> float:
        variables, detail = wrong[name]
        began = monotonic()
        with (
            Client(settings_of(variables)) as client,
            pytest.raises(QueueUnreachableError, match=re.escape(detail)),
        ):
            client.submit("uploads", "a.jpg")
        return monotonic() - began

    with ThreadPoolExecutor(2) as threads:
        yield {name: threads.submit(submit, name) for name in ("signed by another", "without our own")}


@pytest.mark.parametrize("name", ["signed by another", "without our own"])
def test_the_error_of_a_producer_names_the_setting_to_change(
    submitted: dict[str, Future[float]], name: str
) -> None:
    """It is raised after the retries of one connection."""
    assert submitted[name].result() < 20 * PATIENCE


@pytest.mark.parametrize("name", MISTAKES)
def test_the_doctor_names_the_setting_to_change(
    wrong: dict[str, tuple[dict[str, str], str]], name: str
) -> None:
    """In its only line about the broker."""
    variables, detail = wrong[name]
    (line,) = diagnose_broker(settings_of(variables))
    assert (line.name, line.outcome) == ("broker", "fault")
    assert detail in f"{line.problem} {line.remedy}"


def test_a_lost_or_refused_connection_is_no_fault_of_the_settings(trusted: dict[str, str]) -> None:
    """The broker may come back."""
    settings = settings_of(trusted)
    assert connection_fault(ConnectionResetError(), settings.broker) is None
    (port,) = free_ports(1)
    away = settings.model_copy(update={"redis_url": SecretStr(f"rediss://127.0.0.1:{port}/0")})
    assert connection_fault(ConnectionRefusedError(), away.broker) is None


def test_a_connection_closed_during_the_handshake_is_no_fault_of_the_settings(
    trusted: dict[str, str],
) -> None:
    """A broker that restarts does that."""
    with socket.create_server((HOST, 0)) as server, ThreadPoolExecutor(1) as threads:
        url = SecretStr(f"rediss://{HOST}:{server.getsockname()[1]}/0")

        def hang_up() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)

        hanging = threads.submit(hang_up)
        settings = settings_of(trusted).model_copy(update={"redis_url": url})
        assert connection_fault(ConnectionResetError(), settings.broker) is None
        hanging.result(30)


def test_a_certificate_fault_is_looked_for_only_behind_a_lost_tls_connection(
    wrong: dict[str, tuple[dict[str, str], str]], valkey: Valkey
) -> None:
    """Not without TLS, and not behind a reply of the server; the lost connection may be a deeper cause."""
    variables, detail = wrong["signed by another"]
    impostor = settings_of(variables)
    assert connection_fault(ConnectionResetError(), Settings(redis_url=valkey.url).broker) is None
    assert connection_fault(redis.ResponseError("MISCONF"), impostor.broker) is None
    error = ValueError()
    error.__context__ = ConnectionResetError()
    assert detail in str(connection_fault(error, impostor.broker))


def test_a_permission_error_names_the_denied_command(valkey: Valkey) -> None:
    """The user in DNF_REDIS_URL has too few rights."""
    settings = Settings(redis_url=valkey.url.replace("//", "//guest:secret@"))
    with redis.Redis.from_url(valkey.url) as admin:
        admin.execute_command("ACL", "SETUSER", "guest", "on", ">secret", "+@connection")
    with connect(settings.broker) as guest, pytest.raises(redis.ResponseError) as refused:
        guest.llen("image-checks")
    assert re.search("too few rights: .*llen", str(connection_fault(refused.value, settings.broker)))


def test_a_running_worker_logs_when_its_certificate_is_refused_and_accepted_again(
    worker: RunningWorker, strict: TlsProxy, authority: Authority, valkey: Valkey, tmp_path: Path
) -> None:
    """For example because the broker names another authority; the worker goes on afterwards."""
    with redis.Redis.from_url(valkey.url) as broker:
        strict.require(Authority(tmp_path / "new"))
        broker.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        (line,) = worker.wait_for_event("broker_fault_found", fault="client_certificate_refused")
        assert "does not accept our certificate" in line["detail"]
    strict.require(authority)
    worker.wait_for_event("broker_recovered", fault="client_certificate_refused")
    with Client(settings_of(worker.environment)) as client:
        check_id = client.submit(client.settings.upload_bucket, "none.jpg")
        client.wait_for(check_id, timeout_seconds=60 * PATIENCE)
    assert worker.stop() == 0


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false"])
def test_the_url_cannot_turn_off_the_verification_of_certificates(option: str) -> None:
    """An option in the URL would take precedence over ours."""
    with pytest.raises(ValueError, match="takes no options"):
        Settings(redis_url=f"rediss://127.0.0.1:6379/0?{option}")


def test_a_missing_certificate_file_is_an_invalid_setting(tmp_path: Path) -> None:
    """It is reported before anything is connected."""
    with pytest.raises(ValueError, match="redis_ca_file"):
        Settings(redis_ca_file=tmp_path / "none.pem")
