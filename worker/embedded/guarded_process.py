"""Child processes that never outlive the process that started them."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# The guard reads one line. A line means that the child was stopped in order; the end of the pipe without
# one means that its starter died, whatever the cause: the child's whole group goes too, and its folder, and
# the folder around it when nothing else is left there.
_GUARD = """
read -r _ && exit
kill -KILL "-$1"
test -n "$2" || exit
rm -rf "$2" || { sleep 1; rm -rf "$2"; }
rmdir "${2%/*}"
"""


class GuardedProcess:
    """A child in its own session, with its output in a file, that dies with its starter.

    `command` is the program with its arguments; `log` receives its standard output and standard error;
    `environment` replaces the inherited one; `folder`, if given, is removed when the starter is killed.
    Ctrl-C in the terminal does not reach the child: whoever started it decides when it stops.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.log = log
        try:
            with _signals_held():
                self._start([str(part) for part in command], environment, folder)
        except KeyboardInterrupt:
            self.kill()
            raise

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str] | None, folder: Path | None
    ) -> None:
        with self.log.open("ab") as output:
            self.popen = subprocess.Popen(  # noqa: S603 - the command is composed by this package
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )
        self._guard = subprocess.Popen(  # noqa: S603 - a constant script
            ["/bin/sh", "-c", _GUARD, "guard", str(self.popen.pid), str(folder or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The child's process id, which is its group's id too."""
        return self.popen.pid

    @property
    def alive(self) -> bool:
        """Whether the child still runs."""
        return self.popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child alone; one that has ended is left in peace."""
        self.popen.send_signal(number)

    def stop(self, *, grace_seconds: float = 10.0) -> int:
        """Ask the child to end with SIGTERM, insist with SIGKILL after `grace_seconds`, return its status."""
        if self.alive:
            self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(grace_seconds)
        return self.kill()

    def kill(self) -> int:
        """End the child and what it left in its group with SIGKILL; return its exit status."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        status = self.popen.wait()
        self._dismiss_guard()
        return status

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of the log, for a message about what went wrong."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _dismiss_guard(self) -> None:
        pipe = self._guard.stdin
        if pipe is not None and not pipe.closed:
            with suppress(BrokenPipeError):
                pipe.write(b"stopped\n")
                pipe.flush()
            with suppress(BrokenPipeError):
                pipe.close()
        self._guard.wait()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Put off SIGINT and SIGTERM until the block ends: an exception between two starts would orphan a child.

    A blocked signal mask would be inherited by the children, so the handlers are exchanged instead. Other
    threads than the main one are never interrupted by a handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if callable(signal.getsignal(number))
    ]
    before = {number: signal.signal(number, lambda late, _: held.append(late)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in held:
        signal.raise_signal(late)
