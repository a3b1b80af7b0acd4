"""A redis-cli for the examples where none is installed: `-u URL`, `--raw` and one command."""

import sys
from typing import Any

import redis


def _lines(reply: Any) -> list[bytes]:
    if isinstance(reply, list):
        return [line for item in reply for line in _lines(item)]
    if reply is None:
        return [b""]
    return [reply if isinstance(reply, bytes) else str(reply).encode()]


def main(words: list[str]) -> None:
    """Send one command and write its reply, one value a line, like redis-cli into a pipe."""
    assert words.pop(0) == "-u"
    url = words.pop(0)
    if words[0] == "--raw":
        words.pop(0)
    with redis.Redis.from_url(url, protocol=2) as client:
        connection = client.connection_pool.get_connection()
        connection.send_command(*words)
        try:
            reply = connection.read_response()
        except redis.ResponseError as error:
            sys.stdout.write(f"{error}\n\n")
            sys.exit(1)
    sys.stdout.buffer.write(b"\n".join(_lines(reply)) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
