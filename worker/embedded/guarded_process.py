"""Child processes that never outlive their parent."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# The guard reads one line from a pipe. A line means that the child was stopped; end of file without a line
# means that the parent died, for whatever reason: the guard then kills the child's process group and removes
# its folder, and the folder's parent if that is empty.
_GUARD = """
read -r _ && exit
kill -KILL "-$1"
test -n "$2" || exit
rm -rf "$2" || { sleep 1; rm -rf "$2"; }
rmdir "${2%/*}"
"""


class GuardedProcess:
    """A child in a session of its own that dies with its parent.

    `command` is the program with its arguments; `log` is the file for its standard output and error;
    `environment` replaces the inherited one; `folder`, if given, is removed when the parent is killed; `user`
    is the user and group that root starts the child as. Ctrl-C in the terminal does not reach the child: the
    parent decides when it stops.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        user: int | None = None,
    ) -> None:
        self.log = log
        try:
            with _signals_deferred():
                self._start([str(part) for part in command], environment, folder, user)
        except KeyboardInterrupt:
            self.kill()
            raise

    def _start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None,
        folder: Path | None,
        user: int | None,
    ) -> None:
        with self.log.open("ab") as output:
            self.popen = subprocess.Popen(  # noqa: S603 - the command is composed by this package
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
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
        """The child's process id, which is also its group's id."""
        return self.popen.pid

    @property
    def alive(self) -> bool:
        """Whether the child is running."""
        return self.popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child, not to its group; no-op if it has ended."""
        self.popen.send_signal(number)

    def stop(self, *, grace_seconds: float = 10.0) -> int:
        """Send SIGTERM, SIGKILL after `grace_seconds`; return the child's exit status."""
        if self.alive:
            self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(grace_seconds)
        return self.kill()

    def kill(self) -> int:
        """Kill the child and its process group (SIGKILL); return the child's exit status."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        status = self.popen.wait()
        self._end_guard()
        return status

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of the log, for error messages."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _end_guard(self) -> None:
        pipe = self._guard.stdin
        if pipe is not None and not pipe.closed:
            with suppress(BrokenPipeError):
                pipe.write(b"stopped\n")
                pipe.flush()
            with suppress(BrokenPipeError):
                pipe.close()
        self._guard.wait()


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defer signals until the block ends: an exception between two starts would orphan a child.

    The handlers are replaced, because children would inherit a blocked signal mask. No-op outside of the main
    thread, which alone runs signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deferred: list[int] = []
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if callable(signal.getsignal(number))
    ]
    before = {number: signal.signal(number, lambda late, _: deferred.append(late)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in deferred:
        signal.raise_signal(late)
