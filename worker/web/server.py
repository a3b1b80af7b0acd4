"""The server process of the page: one event loop, endpoints in threads."""

import socket
from dataclasses import dataclass
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI

from worker.telemetry.logs import get_logger

log = get_logger(__name__)

# Open pages listen for updates until they are cut off; a decision takes far less.
_SHUTDOWN_SECONDS = 5
_ALIVE_SECONDS = 65


class AddressUnavailableError(OSError):
    """The server cannot listen on its address."""


@dataclass(frozen=True)
class Listener:
    """A bound socket; connections wait in it until `serve` takes them."""

    bound: socket.socket

    @classmethod
    def bind(cls, host: str, port: int) -> "Listener":
        """Bind to an address; `::` is every address, IPv4 too, and port 0 a free port.

        Raises `AddressUnavailableError`.
        """
        if host == "::" and not socket.has_dualstack_ipv6():
            host = "0.0.0.0"  # noqa: S104  # nosec B104
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            dual = family == socket.AF_INET6 and host == "::"
            return cls(socket.create_server((host, port), family=family, backlog=512, dualstack_ipv6=dual))
        except OSError as error:
            shown = f"[{host}]" if ":" in host else host
            raise AddressUnavailableError(
                f"cannot listen on {shown}:{port}: {error.strerror or error}"
            ) from error

    @property
    def port(self) -> int:
        """The port."""
        return int(self.bound.getsockname()[1])

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return ip_address(self.bound.getsockname()[0]).is_loopback


def server(app: FastAPI) -> uvicorn.Server:
    """Return a server for an application, which `run(sockets=[...])` starts."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="httptools",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            # Whoever connects decides whose identity headers are believed; no header may change that address.
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_ALIVE_SECONDS,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
    )


def serve(app: FastAPI, listener: Listener) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests that run."""
    log.info("page_served", host=listener.bound.getsockname()[0], port=listener.port)
    server(app).run(sockets=[listener.bound])
