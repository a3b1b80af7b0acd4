"""The tie between a supervisor and a worker process: one tells that it is ready, and dies with the other."""

import os
import signal
import socket
import threading
from contextlib import suppress

_READY = b"r"
_REFUSED = b"x"


class Tether:
    """The worker's end; `descriptor` is the socket that the supervisor left open for it.

    When the supervisor ends, whatever the cause, this process is killed. Ctrl-C in the terminal reaches the
    supervisor, which passes it on.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._hang_on, name="tether", daemon=True).start()

    def ready(self) -> None:
        """Tell that the model is warm and checks are taken."""
        with suppress(OSError):
            self._socket.send(_READY)

    def refused(self) -> None:
        """Tell that the process ends for a mistake in its settings, which another try will not mend."""
        with suppress(OSError):
            self._socket.send(_REFUSED)

    def _hang_on(self) -> None:
        with suppress(OSError):
            while self._socket.recv(16):
                pass
        os.kill(os.getpid(), signal.SIGKILL)


class Holder:
    """The supervisor's end, and the socket that the worker inherits."""

    def __init__(self) -> None:
        self._own, self._workers = socket.socketpair()
        self._own.settimeout(0)
        self.is_ready = False
        self.was_refused = False

    @property
    def descriptor(self) -> int:
        """What the worker is to inherit."""
        return self._workers.fileno()

    def inherited(self) -> None:
        """Close the worker's socket here, once it has its own."""
        self._workers.close()

    def look(self) -> None:
        """Take in what the worker told."""
        with suppress(OSError):
            told = self._own.recv(16)
            self.is_ready |= _READY in told
            self.was_refused |= _REFUSED in told

    def close(self) -> None:
        """Let go."""
        self._own.close()
