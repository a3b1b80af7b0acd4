"""Faults of a real broker, each for as long as a `with` block runs."""

import resource
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import redis

from worker.embedded.valkey import Valkey, valkey_program

#: Breaks a server; the client is an administrator's.
Breaking = Callable[[Valkey, redis.Redis], AbstractContextManager[None]]


def valkey_on_a_small_disk(folder: Path) -> Valkey:
    """Return a server, not started yet, that survives `full_disk`: a full disk is an error, not its end."""
    program = folder / "valkey-server"
    program.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {shlex.quote(str(valkey_program()))} \"$@\"\n")
    program.chmod(0o700)
    return Valkey(folder / "valkey", program=program)


@contextmanager
def configured(admin: redis.Redis, **options: str) -> Iterator[None]:
    """Change the server's configuration."""
    before = {name: admin.config_get(name)[name] for name in options}
    try:
        for name, value in options.items():
            admin.config_set(name, value)
        yield
    finally:
        for name, value in before.items():
            admin.config_set(name, value)


@contextmanager
def commands_denied(admin: redis.Redis, *commands: str) -> Iterator[None]:
    """Deny commands to every client of the server."""
    admin.execute_command("ACL", "SETUSER", "default", *(f"-{command}" for command in commands))
    try:
        yield
    finally:
        admin.execute_command("ACL", "SETUSER", "default", "+@all")


def evicting(_: Valkey, admin: redis.Redis) -> AbstractContextManager[None]:
    """Let the server evict every key."""
    return configured(admin, **{"maxmemory-policy": "allkeys-lru", "maxmemory": "1"})


def memory_full(_: Valkey, admin: redis.Redis) -> AbstractContextManager[None]:
    """Let the server refuse writes for want of memory."""
    return configured(admin, maxmemory="1")


@contextmanager
def not_durable(_: Valkey, admin: redis.Redis) -> Iterator[None]:
    """Turn the append-only file off; afterwards wait until it is rewritten."""
    with configured(admin, appendonly="no"):
        yield
    while admin.info("persistence")["aof_rewrite_in_progress"]:
        time.sleep(0.01)


def too_few_replicas(_: Valkey, admin: redis.Redis) -> AbstractContextManager[None]:
    """Let the server demand a replica, which it does not have, for each write."""
    return configured(admin, **{"min-replicas-to-write": "1"})


@contextmanager
def read_only(_: Valkey, admin: redis.Redis) -> Iterator[None]:
    """Make the server a replica of a primary that does not exist."""
    admin.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        admin.replicaof("NO", "ONE")


@contextmanager
def disk_full(valkey: Valkey, admin: redis.Redis) -> Iterator[None]:
    """Fill the server's disk, and write until the server notices."""
    with full_disk(valkey):
        with suppress(redis.ResponseError):  # another client's write may have failed first
            admin.set("more than the disk takes", bytes(100_000))
        yield


@contextmanager
def full_disk(valkey: Valkey) -> Iterator[None]:
    """Forbid the server's files to grow."""
    assert valkey.process is not None
    largest = max(file.stat().st_size for file in (valkey.folder / "appendonlydir").iterdir())
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(valkey.process.pid, resource.RLIMIT_FSIZE, (largest, unlimited))
    try:
        yield
    finally:
        resource.prlimit(valkey.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
