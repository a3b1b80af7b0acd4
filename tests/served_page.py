"""The page and the API, served as `dnf-worker web` does, and a client that calls them."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection
from typing import Any

from tests.conftest import PATIENCE
from worker.database.database import Database
from worker.database.tokens import SCOPES, Scope, create_token
from worker.embedded.startup import HOST
from worker.settings import Settings
from worker.web.app import create_app
from worker.web.identity import OneTimeLinks
from worker.web.server import Listener, server

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    #: Their names in any case.
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def reason(self) -> str:
        """The reason of a problem."""
        assert self.headers["content-type"] == "application/problem+json", self.body
        assert self.json["status"] == self.status
        return str(self.json["reason"])


class Caller:
    """Calls a served API, with a connection for each thread."""

    def __init__(self, port: int, headers: Mapping[str, str]) -> None:
        self.port = port
        self.headers = dict(headers)
        self._own = threading.local()

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Reply:
        """Return the answer to a request, with `body` as JSON or `raw` as it is."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        sent = {**self.headers, **({} if body is None else JSON), **(headers or {})}
        for last in (False, True):
            connection = getattr(self._own, "connection", None)
            if connection is None:
                connection = self._own.connection = HTTPConnection(HOST, self.port, timeout=60 * PATIENCE)
            try:
                connection.request(method, path, data, sent)
                answer = connection.getresponse()
                content = answer.read()
            except OSError:
                # The server closed a connection that was kept.
                self._own.connection = None
                if last:
                    raise
                continue
            return Reply(answer.status, answer.headers, content)
        raise AssertionError

    def get(self, path: str, **options: Any) -> Reply:
        """Return the answer to GET."""
        return self.call("GET", path, **options)

    def post(self, path: str, body: object = None, **options: Any) -> Reply:
        """Return the answer to POST."""
        return self.call("POST", path, body, **options)


def multipart(picture: bytes, check: object = None, *, more: str = "") -> tuple[bytes, dict[str, str]]:
    """Return the body of an upload and its headers."""
    part = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="../../a.jpg"\r\n\r\n'
    body = part + picture + b"\r\n"
    if check is not None:
        body += (
            b'--x\r\nContent-Disposition: form-data; name="check"\r\n\r\n'
            + json.dumps(check).encode()
            + b"\r\n"
        )
    return body + more.encode() + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


@contextmanager
def served(settings: Settings, database: Database, *, links: OneTimeLinks | None = None) -> Iterator[int]:
    """Serve the application on a free port of this machine, and yield the port."""
    listener = Listener.bind(HOST, 0)
    running = server(create_app(settings, database, links=links))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener.bound]}, daemon=True)
    thread.start()
    try:
        yield listener.port
    finally:
        running.should_exit = True
        thread.join()


def token(database: Database, *scopes: Scope) -> str:
    """Return a new token, by default with every scope."""
    with database.transaction() as tx:
        return create_token(tx, "tests", scopes or SCOPES, by="tests")[1]


def bearer(text: str) -> dict[str, str]:
    """Return the header of a token."""
    return {"Authorization": f"Bearer {text}"}
