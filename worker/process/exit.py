"""The one way in which a worker process ends."""

import os
import threading
from typing import NoReturn

# Whoever ends the process acquires it and never releases it.
_ending = threading.Lock()


def exit_process(status: int) -> NoReturn:
    """End this process at once; of several threads the first one decides on the status.

    The interpreter is not finalised: it would take modules apart beside threads that run native code or end
    the process themselves, which crashes it now and then. Nothing is buffered: each log line is flushed.
    """
    _ending.acquire()
    os._exit(status)
