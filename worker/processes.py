"""Child processes that never outlive the process that started them."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
        with log.open("ab") as output:
            self.popen = subprocess.Popen(  # noqa: S603 - the command is composed by this package
                [str(part) for part in command],
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
