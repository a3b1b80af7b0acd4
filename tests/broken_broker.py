"""Faults of a real broker, each for as long as a block runs."""

import resource
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import redis

from worker.embedded.valkey import Valkey, valkey_program

#: Breaks a server, with a client for what an operator does.
Breaking = Callable[[Valkey, redis.Redis], AbstractContextManager[None]]


def valkey_on_a_small_disk(folder: Path) -> Valkey:
    """Return a server, not started yet; a file that may grow no more is an error to it, not its end."""
    program = folder / "valkey-server"
    program.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {shlex.quote(str(valkey_program()))} \"$@\"\n")
    program.chmod(0o700)
    return Valkey(folder / "valkey", program=program)


@contextmanager
def configured(admin: redis.Redis, **options: str) -> Iterator[None]:
    """Change the server's configuration."""
    before = {name: admin.config_get(name)[name] for name in options}
    for name, value in options.items():
        admin.config_set(name, value)
    yield
    for name, value in before.items():
        admin.config_set(name, value)


def evicting(_: Valkey, admin: redis.Redis) -> AbstractContextManager[None]:
    """Let the server throw away all that it holds."""
    return configured(admin, **{"maxmemory-policy": "allkeys-lru", "maxmemory": "1"})


def memory_full(_: Valkey, admin: redis.Redis) -> AbstractContextManager[None]:
    """Leave the server no memory to write."""
    return configured(admin, maxmemory="1")


@contextmanager
def not_durable(_: Valkey, admin: redis.Redis) -> Iterator[None]:
    """Let the server keep nothing on its disk; after it everything is there again."""
    with configured(admin, appendonly="no"):
        yield
    while admin.info("persistence")["aof_rewrite_in_progress"]:
        time.sleep(0.01)


def too_few_replicas(_: Valkey, admin: redis.Redis) -> AbstractContextManager[None]:
    """Let the server write only with a replica, which it has not."""
    return configured(admin, **{"min-replicas-to-write": "1"})


@contextmanager
def read_only(_: Valkey, admin: redis.Redis) -> Iterator[None]:
    """Make the server a replica, of nobody."""
    admin.replicaof("127.0.0.1", "1")
    yield
    admin.replicaof("NO", "ONE")


@contextmanager
def disk_full(valkey: Valkey, admin: redis.Redis) -> Iterator[None]:
    """Let the server's files grow no more, and have it find out."""
    with full_disk(valkey):
        with suppress(redis.ResponseError):  # a write of somebody else may have been the first to fail
            admin.set("more than the disk takes", bytes(100_000))
        yield


@contextmanager
def full_disk(valkey: Valkey) -> Iterator[None]:
    """Let the server's files grow no more."""
    assert valkey.process is not None
    largest = max(file.stat().st_size for file in (valkey.folder / "appendonlydir").iterdir())
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(valkey.process.pid, resource.RLIMIT_FSIZE, (largest, unlimited))
    yield
    resource.prlimit(valkey.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
