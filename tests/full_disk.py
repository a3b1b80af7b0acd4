"""A broker whose disk is full: a file of its own may grow no more."""

import resource
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.embedded import Valkey
from worker.startup import valkey_program


def valkey_on_a_small_disk(folder: Path) -> Valkey:
    """Return a server, not started yet; a file that may grow no more is an error to it, not its end."""
    program = folder / "valkey-server"
    program.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {shlex.quote(str(valkey_program()))} \"$@\"\n")
    program.chmod(0o700)
    return Valkey(folder / "valkey", program=program)


@contextmanager
def full_disk(valkey: Valkey) -> Iterator[None]:
    """Let the server's files grow no more while the block runs."""
    assert valkey.process is not None
    largest = max(file.stat().st_size for file in (valkey.folder / "appendonlydir").iterdir())
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(valkey.process.pid, resource.RLIMIT_FSIZE, (largest, unlimited))
    yield
    resource.prlimit(valkey.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
