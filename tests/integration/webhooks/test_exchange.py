"""Requests of webhooks, against real receivers: where they connect, what they trust, how long they take."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.tls import Authority
from tests.webhook_receiver import Receiver, wait_until
from worker.embedded.startup import HOST
from worker.webhooks.addresses import Addresses, AddressRefusedError
from worker.webhooks.exchange import ExchangeFailedError, Exchanges
from worker.webhooks.signing import new_secret, signed_headers

LOOPBACK = ["127.0.0.0/8"]
ROOT = Path(__file__).parents[3]


def named(address: str) -> Any:
    """Return a name service that knows this address of every host."""
    return lambda _host, port, **_: [(socket.AF_INET, 1, 6, "", (address, port))]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Provide an authority of the module's own."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Provide a receiver that answers 200."""
    with Receiver() as receiver:
        yield receiver


def test_a_request_reaches_its_receiver_with_a_signature_that_the_specifications_library_verifies(
    receiver: Receiver,
) -> None:
    """During a rotation, with the old secret and with the new one."""
    old, new = new_secret(), new_secret()
    body = '{"type": "image.verdict.v1", "detail": "café"}'
    headers = signed_headers("e-1", body, [new, old])
    answer = Exchanges(Addresses(LOOPBACK)).post(receiver.url, headers, body.encode())
    assert answer.status == 200
    (request,) = receiver.received
    assert request.headers["webhook-id"] == "e-1"
    assert request.headers["host"] == f"{HOST}:{receiver.port}"
    for whsec in (old, new):
        assert request.verified(whsec)["detail"] == "café"


def test_the_receiver_of_the_documentation_takes_an_event_once_and_refuses_a_forged_one() -> None:
    """The file and the page have the same lines."""
    program = ROOT / "deploy" / "examples" / "receive_webhook.py"
    page = (ROOT / "docs" / "how-to" / "receive-webhooks.md").read_text()
    own_lines = [re.sub("  # noqa.*", "", line) for line in program.read_text().splitlines()[2:]]
    assert "\n".join(own_lines) in page
    with closing(socket.create_server((HOST, 0))) as listener:
        port = listener.getsockname()[1]
    secret = new_secret()
    with subprocess.Popen(
        [sys.executable, str(program), str(port), secret], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            exchanges = Exchanges(Addresses(LOOPBACK))
            body = json.dumps({"id": "e-1", "type": "image.verdict.v1", "subject": "s3://uploads/a.jpg"})

            def sent(whsec: str) -> int:
                url = f"http://{HOST}:{port}/"
                return exchanges.post(url, signed_headers("e-1", body, [whsec]), body.encode()).status

            wait_until(lambda: _listens(port))
            assert [sent(secret), sent(secret), sent(new_secret())] == [204, 204, 401]
        finally:
            process.terminate()
        assert process.stdout is not None
        assert process.stdout.read() == "image.verdict.v1 s3://uploads/a.jpg\n"


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://metadata.example:{port}/", "169.254.169.254"),
        ("https://[::ffff:127.0.0.1]:{port}/", "::ffff:127.0.0.1"),
        ("https://127.0.0.1:{port}/", "127.0.0.1"),
        ("https://rebinds.example:{port}/", "127.0.0.1"),
    ],
)
def test_no_connection_is_made_to_a_private_address(receiver: Receiver, url: str, address: str) -> None:
    """Neither to the metadata service, nor to this machine in any form, nor by a name that resolves to it."""
    with pytest.raises(AddressRefusedError):
        Exchanges(Addresses(resolve=named(address))).post(url.format(port=receiver.port), {}, b"{}")
    assert receiver.connections == 0


def test_a_name_that_rebinds_after_its_check_changes_nothing(receiver: Receiver) -> None:
    """It is resolved once: the address that was checked is the one that is connected to."""
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])

    def rebinding(_host: str, port: int, **_: object) -> Any:
        return [(socket.AF_INET, 1, 6, "", (next(answers), port))]

    exchanges = Exchanges(Addresses(["127.0.0.1"], resolve=rebinding))
    assert exchanges.post(f"http://rebinds.example:{receiver.port}/", {}, b"{}").status == 200
    with pytest.raises(AddressRefusedError):
        exchanges.post(f"http://rebinds.example:{receiver.port}/", {}, b"{}")
    assert len(receiver.received) == 1


def test_tls_is_verified_for_the_name_of_the_url_and_asks_for_it(authority: Authority) -> None:
    """The connection goes to the checked address; name in the handshake and certificate are the URL's."""
    certificate = authority.issue("receiver", host="DNS:receiver.example")
    with Receiver(certificate=certificate) as receiver:
        exchanges = Exchanges(Addresses(LOOPBACK, resolve=named(HOST)), ca_file=authority.certificate)
        assert exchanges.post(f"https://receiver.example:{receiver.port}/", {}, b"{}").status == 200
        assert receiver.names == ["receiver.example"]
        with pytest.raises(ExchangeFailedError) as refused:
            exchanges.post(f"https://other.example:{receiver.port}/", {}, b"{}")
        assert refused.value.reason == "certificate_refused"
        with pytest.raises(ExchangeFailedError) as refused:
            Exchanges(Addresses(LOOPBACK, resolve=named(HOST))).post(
                f"https://receiver.example:{receiver.port}/", {}, b"{}"
            )
        assert refused.value.reason == "certificate_refused"
    assert len(receiver.received) == 1


def test_a_redirect_is_answered_not_followed(receiver: Receiver) -> None:
    """The other receiver gets nothing."""
    with Receiver([(302, {"location": receiver.url})]) as redirecting:
        answer = Exchanges(Addresses(LOOPBACK)).post(redirecting.url, {}, b"{}")
    assert answer.status == 302
    assert receiver.connections == 0


def test_no_proxy_of_the_environment_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name itself."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Exchanges(Addresses(LOOPBACK)).post(receiver.url, {}, b"{}").status == 200


def test_an_address_that_does_not_answer_is_followed_by_the_next(receiver: Receiver) -> None:
    """A host may have several."""

    def two(_host: str, port: int, **_: object) -> Any:
        return [(socket.AF_INET, 1, 6, "", (address, port)) for address in ("127.0.0.9", HOST)]

    exchanges = Exchanges(Addresses(LOOPBACK, resolve=two))
    assert exchanges.post(f"http://two.example:{receiver.port}/", {}, b"{}").status == 200


def _served_slowly(listener: socket.socket, first: bytes, drip: bytes, stop: threading.Event) -> None:
    """Send a few bytes every now and then, so that no single wait is long."""
    connected, _ = listener.accept()
    with closing(connected):
        connected.sendall(first)
        while not stop.wait(0.05):
            try:
                connected.sendall(drip)
            except OSError:
                return


@pytest.mark.parametrize(
    ("first", "drip", "reason"),
    [
        (b"", b"", "timeout"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", "timeout"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", "timeout"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"", "not_http"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 40_000, b"", "not_http"),
    ],
)
def test_an_exchange_ends_in_time_whatever_the_receiver_sends(first: bytes, drip: bytes, reason: str) -> None:
    """Nothing, headers without end, interim answers without end, another protocol, a header without end."""
    stop = threading.Event()
    with closing(socket.create_server((HOST, 0))) as listener:
        thread = threading.Thread(target=_served_slowly, args=(listener, first, drip, stop), daemon=True)
        thread.start()
        started = time.monotonic()
        with pytest.raises(ExchangeFailedError) as failed:
            Exchanges(Addresses(LOOPBACK), seconds=0.4).post(
                f"http://{HOST}:{listener.getsockname()[1]}/", {}, b"{}"
            )
        assert failed.value.reason == reason
        assert time.monotonic() - started < 5
        stop.set()
        thread.join()


def test_a_body_without_end_does_not_turn_an_acceptance_into_a_failure() -> None:
    """The status is the answer; the rest is not waited for."""
    stop = threading.Event()
    first = b"HTTP/1.1 204 No Content\r\nretry-after: 7\r\n\r\n"
    with closing(socket.create_server((HOST, 0))) as listener:
        thread = threading.Thread(
            target=_served_slowly, args=(listener, first, b"x" * 1000, stop), daemon=True
        )
        thread.start()
        answer = Exchanges(Addresses(LOOPBACK)).post(f"http://{HOST}:{listener.getsockname()[1]}/", {}, b"{}")
        assert (answer.status, answer.retry_after_seconds) == (204, 7.0)
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("120", 120.0), ("999999999999", 86_400.0), ("-5", None), ("soon", None), ("", None)],
)
def test_a_receiver_may_ask_to_be_left_alone_for_at_most_a_day(value: str, seconds: float | None) -> None:
    """What is no number of seconds and no date is ignored."""
    with Receiver([(429, {"retry-after": value})]) as receiver:
        answer = Exchanges(Addresses(LOOPBACK)).post(receiver.url, {}, b"{}")
    assert (answer.status, answer.retry_after_seconds) == (429, seconds)


def test_a_receiver_may_name_the_date_from_which_it_may_be_asked_again() -> None:
    """As HTTP has it; one in the past means at once."""
    with Receiver(
        [
            (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
            (503, {"retry-after": "Fri, 31 Dec 2999 23:59:59 GMT"}),
        ]
    ) as receiver:
        exchanges = Exchanges(Addresses(LOOPBACK))
        waits = [exchanges.post(receiver.url, {}, b"{}").retry_after_seconds for _ in range(2)]
    assert waits == [0.0, 86_400.0]


def test_a_receiver_that_nobody_runs_is_a_failed_connection() -> None:
    """The port is free again."""
    with closing(socket.create_server((HOST, 0))) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ExchangeFailedError) as failed:
        Exchanges(Addresses(LOOPBACK)).post(f"http://{HOST}:{port}/", {}, b"{}")
    assert failed.value.reason == "connection_failed"
