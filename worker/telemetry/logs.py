"""Structured logs of our events, Celery's and boto3's: JSON lines, or colours on a terminal.

structlog loads rich and others. A platform that imports the client pays for that with its first log event,
which most never have.
"""

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from io import StringIO
from typing import TYPE_CHECKING, Any, TextIO, cast

from worker.settings import MASK, Settings

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger
    from structlog.typing import ExcInfo, Processor

_URL_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@/\s]+@")
# A shorter text occurs in half of all lines; masking it would hide them and protect nothing.
_SHORTEST_SECRET = 4


def configure_logs(settings: Settings) -> None:
    """Send every log line of this process to standard error in the format that the settings ask for."""
    import structlog

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    # Tracebacks show no local variables, which hold pictures and keys.
    ending: list[Processor] = (
        [_escape_values, structlog.dev.ConsoleRenderer(exception_formatter=_plain_traceback)]
        if console
        else [
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(default=str),
        ]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *ending,
                SecretMask(settings.secrets()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    logging.captureWarnings(capture=True)
    # Their line for each task or request repeats what `image_checked` says.
    for noisy in ("celery.app.trace", "celery.worker.strategy", "botocore", "urllib3", "kombu"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _escape_values(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape the control characters of every text: keys and messages come from outside."""
    from detector.terminal import escaped

    for name, value in event.items():
        if isinstance(value, str):
            event[name] = escaped(value, newlines=True)
    return event


def _plain_traceback(stream: TextIO, exception: "ExcInfo") -> None:
    import structlog

    from detector.terminal import escaped

    text = StringIO()
    structlog.dev.plain_traceback(text, exception)
    stream.write(escaped(text.getvalue(), newlines=True))


class SecretMask:
    """Masks these texts and any password in a URL; the last processor of a log line."""

    def __init__(self, secrets: frozenset[str]) -> None:
        spellings = {spelling for secret in secrets for spelling in (secret, json.dumps(secret)[1:-1])}
        self._secrets = sorted((text for text in spellings if len(text) >= _SHORTEST_SECRET), key=len)[::-1]

    def __call__(self, _logger: Any, _method: str, line: Any) -> str:
        """Return the rendered line without secrets."""
        return self.masked(str(line))

    def masked(self, text: str) -> str:
        """Return a text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return _URL_PASSWORD.sub(rf"\g<1>{MASK}@", text)


class _Logger:
    """The logger of a module, which imports structlog with its first event."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger: Any = None

    def __getattr__(self, method: str) -> Any:
        if self._logger is None:
            import structlog

            self._logger = structlog.stdlib.get_logger(self._name)
        return getattr(self._logger, method)


def get_logger(name: str) -> "BoundLogger":
    """Return the logger of a module."""
    return cast("BoundLogger", _Logger(name))
