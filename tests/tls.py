"""A certificate authority of a test's own, and a proxy that terminates TLS in front of a server."""

import select
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from worker.embedded.startup import HOST


class Certificate(NamedTuple):
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates with the openssl command; its own is the PEM file `certificate`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.certificate, self._key = self._made(
            "authority", ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
        )

    def issue(self, name: str, *, host: str = f"IP:{HOST}") -> Certificate:
        """Return a certificate for a host, such as `IP:127.0.0.1` or `DNS:localhost`."""
        signed_by = ["-CA", str(self.certificate), "-CAkey", str(self._key)]
        return self._made(name, ["basicConstraints=critical,CA:FALSE", f"subjectAltName={host}"], *signed_by)

    def _made(self, name: str, extensions: list[str], *options: str) -> Certificate:
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", *options]
        for extension in extensions:
            command += ["-addext", extension]
        subprocess.run(
            [*command, "-out", str(made.certificate), "-keyout", str(made.key)],
            check=True,
            capture_output=True,
        )
        return made


class TlsProxy:
    """Terminates TLS and forwards to a port while the `with` block runs.

    Requires client certificates signed by `clients`, if given. The connection of a client that it refuses is
    reset, as by any server that has not read what the client wrote.
    """

    def __init__(
        self, target_port: int, certificate: Certificate, *, clients: Authority | None = None
    ) -> None:
        self._target_port = target_port
        self._listener = socket.create_server((HOST, 0))
        self._certificate = certificate
        self.require(clients)

    def require(self, clients: Authority | None) -> None:
        """Require certificates of this authority on every new connection."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self._certificate)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients.certificate)
        self._context = context

    @property
    def redis_url(self) -> str:
        """The rediss:// URL of the server's database 0."""
        return f"rediss://{HOST}:{self._listener.getsockname()[1]}/0"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            encrypted = self._context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=True)
            with encrypted, socket.create_connection((HOST, self._target_port)) as onward:
                ends: dict[socket.socket, socket.socket] = {encrypted: onward, onward: encrypted}
                while True:
                    ready = [encrypted] if encrypted.pending() else select.select(list(ends), [], [])[0]
                    for end in ready:
                        if not (data := end.recv(16_384)):
                            return
                        ends[end].sendall(data)
