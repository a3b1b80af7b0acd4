"""Tokens that were used lately, so that a call need not ask the database."""

import threading
import time
from collections import OrderedDict

from worker.database.database import Database
from worker.database.errors import DatabaseUnavailableError
from worker.database.tokens import Token, valid_token

# A revoked token works for as long. While the database is away, one that was valid works for longer.
_REMEMBERED_SECONDS, _REMEMBERED_WITHOUT_DATABASE_SECONDS = 10.0, 600.0


class Tokens:
    """The tokens of machines; safe for threads."""

    def __init__(self, database: Database, *, remembered: int = 10_000) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[Token, float]] = OrderedDict()
        self._remembered = remembered

    def valid(self, text: str) -> Token | None:
        """Return the token with this text; None for one that is unknown, revoked or has expired.

        Raises `DatabaseUnavailableError`.
        """
        now = time.monotonic()
        with self._lock:
            known = self._known.get(text)
        if known and now - known[1] < _REMEMBERED_SECONDS:
            return known[0]
        try:
            with self._database.transaction() as tx:
                found = valid_token(tx, text)
        except DatabaseUnavailableError:
            if known and now - known[1] < _REMEMBERED_WITHOUT_DATABASE_SECONDS:
                return known[0]
            raise
        with self._lock:
            self._known.pop(text, None)
            if found:
                self._known[text] = (found, now)
                if len(self._known) > self._remembered:
                    self._known.popitem(last=False)
        return found
