"""The broker, the object store and the database for the demonstration and the tests."""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.embedded.postgres import PostgreSQL
from worker.embedded.seaweedfs import REGION, SeaweedFS
from worker.embedded.valkey import Valkey


class EmbeddedServices:
    """Valkey and SeaweedFS with one bucket, running inside a `with` block; nothing remains after it.

    With `database` PostgreSQL runs too. Raises `EmbeddedServiceError` when a program is missing or a service
    does not start.
    """

    def __init__(self, *, bucket: str = "uploads", database: bool = False) -> None:
        self.bucket = bucket
        # Removes the folder at exit at the latest, even after an interrupt during construction.
        self._temporary = tempfile.TemporaryDirectory(prefix="dnf-embedded-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        # PostgreSQL may run as another user, who enters the folder and lists nothing in it.
        self.folder.chmod(0o711)
        self._cleanup = ExitStack()
        self._cleanup.callback(self._temporary.cleanup)
        try:
            self.valkey = Valkey(self.folder / "valkey")
            self.seaweedfs = SeaweedFS(self.folder / "seaweedfs", bucket)
            self.postgres = PostgreSQL(self.folder / "postgres") if database else None
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
        """The access key id of the object store."""
        return self.seaweedfs.access_key

    @property
    def secret_key(self) -> str:
        """The secret access key of the object store."""
        return self.seaweedfs.secret_key

    def environment(self) -> dict[str, str]:
        """Return the DNF_ variables of a worker or client that uses these services."""
        return {
            "DNF_REDIS_URL": self.redis_url,
            "DNF_S3_ENDPOINT_URL": self.s3_endpoint,
            "DNF_S3_ACCESS_KEY_ID": self.access_key,
            "DNF_S3_SECRET_ACCESS_KEY": self.secret_key,
            "DNF_S3_REGION": REGION,
            "DNF_ALLOWED_BUCKETS": json.dumps([self.bucket]),
            "DNF_UPLOAD_BUCKET": self.bucket,
            **(self.postgres.environment() if self.postgres else {}),
        }

    def start(self) -> None:
        """Start the services and create the bucket; after a failure nothing is left running."""
        try:
            self._cleanup.callback(self.valkey.stop)
            self.valkey.start()
            self._cleanup.callback(self.seaweedfs.kill)
            self.seaweedfs.start()
            if self.postgres:
                self._cleanup.callback(self.postgres.stop)
                self.postgres.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the services and remove their folder."""
        self._cleanup.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
