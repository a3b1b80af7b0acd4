"""Every setting of the service, read from the environment with the prefix DNF_."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from pydantic import Field, FilePath, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MASK = "********"

# Settings with a password inside a URL, which is shown without it.
_URLS = ("redis_url", "s3_endpoint_url", "database_url", "database_owner_url")

_DATABASE = re.compile(r"/?|/[0-9]{1,5}")
# What boto3 takes for a host.
_HOST = re.compile(r"([A-Za-z0-9-]+\.)*[A-Za-z0-9-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


@dataclass(frozen=True)
class BrokerSettings:
    """What a connection to the broker needs."""

    #: redis:// or rediss:// URL, with its user and password.
    url: SecretStr
    #: PEM of the authority that signed the broker's certificate; None: the system's.
    ca_file: Path | None = None
    #: PEM of this client's certificate and of its key, for a broker that asks for one.
    certificate_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True)
class StorageSettings:
    """What the object store needs, and the limits of an upload."""

    #: None: Amazon's.
    endpoint_url: SecretStr | None
    region: str
    #: How a bucket is addressed: in the path, as a host below the endpoint's, or as botocore chooses.
    addressing: Literal["auto", "path", "virtual"]
    #: None: boto3 searches for credentials.
    access_key_id: SecretStr | None
    secret_access_key: SecretStr | None
    #: Limit of a connect and of a single read.
    timeout_seconds: float
    #: Limit of a whole fetch.
    fetch_seconds: float
    #: BUCKET or BUCKET/PREFIX/ that may be read.
    allowed_buckets: tuple[str, ...]
    upload_bucket: str
    #: None: thumbnails are kept in Redis.
    thumbnail_bucket: str | None
    #: Limit of an object.
    max_bytes: int
    #: Connections kept open.
    connections: int
    #: Texts that no error may quote.
    secrets: frozenset[str]


@dataclass(frozen=True)
class WebSettings:
    """Where the page for moderators listens, and who may come in."""

    host: str
    port: int
    #: Origin under which browsers reach it; None: that of each request.
    public_url: str | None
    #: Networks whose identity headers are believed.
    trusted_proxies: tuple[str, ...]
    user_header: str
    name_header: str
    groups_header: str
    #: A JWK set, as path or https:// URL; None: no JWT is asked for.
    jwt_keys: str | None
    jwt_header: str
    jwt_issuer: str
    jwt_audience: str
    jwt_groups_claim: str
    #: Each role with its groups.
    roles: Mapping[str, frozenset[str]]
    #: Claims that one person may make in a minute.
    claims_per_minute: int
    #: Requests that one person may make in a minute.
    requests_per_minute: int


@dataclass(frozen=True)
class DatabaseSettings:
    """What a connection to PostgreSQL needs."""

    #: postgresql:// URL of the service's role; None: the service has no database.
    url: SecretStr | None
    #: The same database as its owner; None: the schema is only checked.
    owner_url: SecretStr | None
    #: Connections of one process.
    connections: int


@dataclass(frozen=True)
class ReviewSettings:
    """Which verdicts people see, and the times of their work."""

    #: Share of `real` and of `generated` verdicts that are audited, by verdict.
    audit_shares: Mapping[str, float]
    #: Share of first decisions that a second person repeats.
    double_share: float
    #: Reviews opened in one day (UTC) for uncertain verdicts, and the same number again for audits.
    daily_limit: int
    lease_seconds: float
    undo_seconds: float
    #: A review that waits for longer is overdue.
    due_seconds: float
    #: CloudEvents `source` of decisions.
    source: str


@dataclass(frozen=True)
class WebhookSettings:
    """Where webhooks may go, and what they say."""

    #: Addresses and networks that are not of the internet and are allowed.
    networks: tuple[str, ...]
    #: PEM of authorities to trust besides the system's.
    ca_file: Path | None
    #: How long events are kept for replays.
    retention_seconds: float
    #: Origin of the API, in the URLs of thumbnails; None: events have no such URL.
    public_url: str | None
    #: CloudEvents `source` of events about webhooks.
    source: str


ROLES = ("moderator", "senior", "auditor", "admin")


class Settings(BaseSettings):
    """The settings of producers, workers and consumers; secrets are masked wherever they are shown."""

    model_config = SettingsConfigDict(
        env_prefix="DNF_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Broker and results: redis:// or rediss:// URL.",
    )
    redis_ca_file: FilePath | None = Field(
        default=None,
        description="PEM of the authority that signs a rediss:// broker's certificate; unset: the system's.",
    )
    redis_certificate_file: FilePath | None = Field(
        default=None, description="PEM of this client's own certificate, for a broker that asks for one."
    )
    redis_key_file: FilePath | None = Field(default=None, description="PEM of that certificate's key.")
    s3_endpoint_url: SecretStr | None = Field(default=None, description="S3 endpoint; unset: Amazon's.")
    s3_region: str = Field(default="us-east-1", description="S3 region.")
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="Bucket in the path or the host name; auto: path, except at Amazon's."
    )
    s3_access_key_id: SecretStr | None = Field(
        default=None, description="S3 access key; unset means boto3's own search."
    )
    s3_secret_access_key: SecretStr | None = Field(default=None, description="S3 secret key.")
    s3_timeout_seconds: float = Field(default=10, gt=0, description="Limit of an S3 connect and of a read.")
    allowed_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("uploads",),
        description="What workers may read: BUCKET or BUCKET/PREFIX/, with commas or as JSON.",
    )
    upload_bucket: str = Field(default="uploads", description="Where `submit` puts local files.")
    bundle: str = Field(default="default", description="The detector: a folder, a name, s3:// or a hub id.")
    bundle_digest: str | None = Field(
        default=None,
        pattern="^([0-9a-f]{64})?$",
        description="SHA-256 that the bundle's manifest must have, in hex; unset: any.",
    )
    shadow_bundle: str | None = Field(
        default=None,
        description="A second detector, for comparison; the verdicts are the serving one's.",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="Computation type.")
    compile: bool = Field(
        default=False,
        description="Compile the U-Net for the GPU before the worker is ready, which takes about a minute.",
    )
    batch_size: int = Field(default=16, ge=1, le=512, description="Pictures in one forward pass, at most.")
    batch_wait_seconds: float = Field(
        default=0.01, ge=0, le=5, description="How long a batch waits for pictures on their way to it."
    )
    threads: int = Field(
        default_factory=lambda earlier: 2 * int(earlier.get("batch_size", 16)),
        ge=1,
        description="Checks in flight in one worker process; unset means twice the batch size.",
    )
    check_deadline_seconds: float = Field(
        default=90, gt=0, description="Limit of one attempt at a check; below the visibility timeout."
    )
    model_stall_seconds: float = Field(
        default_factory=lambda earlier: 2 / 3 * float(earlier.get("check_deadline_seconds", 90)),
        gt=0,
        description="Limit of one batch; beyond it the process ends. Unset: 2/3 of the check deadline.",
    )
    shutdown_grace_seconds: float = Field(
        default=45, ge=0, description="Grace period of a shutdown, for the checks that run."
    )
    processes: int | None = Field(
        default=None, ge=1, le=256, description="Worker processes; unset: one for each visible GPU, or one."
    )
    restart_limit: int = Field(
        default=5, ge=0, description="Restarts of one worker process within the window before all end."
    )
    restart_window_seconds: float = Field(default=300, gt=0, description="The window of the restart limit.")
    visibility_timeout_seconds: int = Field(
        default=120, ge=5, description="An unacknowledged check is delivered again after it."
    )
    max_retries: int = Field(
        default=20, ge=0, description="Retries of a check before it becomes a dead letter."
    )
    max_queue_length: int = Field(
        default=100_000, ge=1, description="Checks that may wait in one queue before more are refused."
    )
    max_attempts: int = Field(
        default=3,
        ge=1,
        description="Attempts at a check that may end with their process before it is dead-lettered.",
    )
    verdict_cache_ttl_seconds: int = Field(
        default=0, ge=0, description="How long a verdict answers for the same bytes; 0: no cache."
    )
    max_bytes: int = Field(default=20 << 20, gt=0, description="Limit of an upload.")
    max_pixels: int = Field(default=50_000_000, gt=0, description="Limit of a picture's width x height.")
    decode_memory_bytes: int = Field(
        default=1 << 30,
        ge=1 << 26,
        description="Memory for all pictures that one process decodes at one time.",
    )
    verdict_stream: str = Field(default="verdicts", min_length=1, description="Redis Stream of events.")
    verdict_stream_max_length: int = Field(
        default=100_000, ge=1, description="Events at which workers stop taking checks; about 2 kB each."
    )
    verdict_min_age_seconds: int = Field(
        default=3600,
        ge=0,
        description="Younger events stay; older ones too until every group acknowledged them.",
    )
    verdict_retention_seconds: int = Field(
        default=7 * 86400, ge=60, description="Events older than this are deleted, acknowledged or not."
    )
    dead_letter_stream: str = Field(
        default="dead-letters", min_length=1, description="Stream of dead letters."
    )
    dead_letter_stream_max_length: int = Field(
        default=10_000, ge=1, description="Dead letters at which workers stop taking checks."
    )
    publish_once_ttl_seconds: int = Field(
        default=7 * 86400, ge=60, description="How long a check's event can be published again."
    )
    thumbnail_bucket: str | None = Field(
        default=None, description="Bucket for DNF thumbnails; unset: Redis keys that expire."
    )
    thumbnail_ttl_seconds: int = Field(
        default=86400, ge=60, description="How long a thumbnail stays in Redis."
    )
    thumbnail_side_pixels: int = Field(default=128, ge=16, le=512, description="Side of the DNF thumbnail.")
    database_url: SecretStr | None = Field(
        default=None,
        description="PostgreSQL for reviews, as the service's role: postgresql:// URL; TLS by its `sslmode`.",
    )
    database_owner_url: SecretStr | None = Field(
        default=None,
        description="The same database as its owner, who migrates it at start; unset: it is only checked.",
    )
    database_connections: int = Field(
        default=10, ge=2, le=1000, description="Connections to PostgreSQL of one process, at most."
    )
    decision_stream: str = Field(
        default="decisions", min_length=1, description="Redis Stream of people's decisions."
    )
    review_audit_share_real: float = Field(
        default=0.01, ge=0, le=1, description="Share of `real` verdicts that people audit blindly."
    )
    review_audit_share_generated: float = Field(
        default=0.05, ge=0, le=1, description="Share of `generated` verdicts that people audit blindly."
    )
    review_double_share: float = Field(
        default=0.05, ge=0, le=1, description="Share of first decisions that a second person repeats."
    )
    review_daily_limit: int = Field(
        default=10_000,
        ge=0,
        description="Reviews opened in a day (UTC) of uncertain verdicts, and as many audits; the rest is"
        " counted.",
    )
    review_lease_seconds: float = Field(
        default=300, ge=1, description="How long a claimed review stays with its moderator unless renewed."
    )
    review_undo_seconds: float = Field(
        default=10, ge=0, description="How long a decision can be undone; it is published afterwards."
    )
    review_due_seconds: float = Field(
        default=86400, gt=0, description="A review that waits for longer is overdue, and offered first."
    )
    review_check_retention_seconds: int = Field(
        default=90 * 86400,
        ge=3600,
        description="How long the database keeps events of checks without a review, for appeals and search.",
    )
    http_host: str = Field(
        default="::",
        description="Where probes and metrics are served; :: is every address, IPv4 too.",
    )
    http_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port of /livez, /readyz, /startupz and /metrics; 0 serves nothing.",
    )
    web_host: str = Field(
        default="::", description="Where the page for moderators is served; :: is every address, IPv4 too."
    )
    web_port: int = Field(default=8080, ge=0, le=65535, description="Its port; 0 chooses a free one.")
    web_public_url: str | None = Field(
        default=None,
        description="https://HOST under which browsers reach the page; unset: the host that they name.",
    )
    web_trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Addresses or networks of the reverse proxies whose identity headers are believed.",
    )
    web_user_header: str = Field(
        default="X-Forwarded-User", min_length=1, description="The proxy's header with the person's id."
    )
    web_name_header: str = Field(
        default="X-Forwarded-Preferred-Username",
        min_length=1,
        description="The proxy's header with the name to show.",
    )
    web_groups_header: str = Field(
        default="X-Forwarded-Groups",
        min_length=1,
        description="The proxy's header with the person's groups, with commas.",
    )
    web_jwt_keys: str | None = Field(
        default=None,
        description="JWK set as path or https:// URL; with it, people come with a JWT that is verified.",
    )
    web_jwt_header: str = Field(
        default="Authorization", min_length=1, description="The header with that JWT, with or without Bearer."
    )
    web_jwt_issuer: str = Field(default="", description="Its `iss`.")
    web_jwt_audience: str = Field(default="", description="The `aud` that it must name.")
    web_jwt_groups_claim: str = Field(default="groups", description="Its claim with the person's groups.")
    web_roles: Annotated[tuple[str, ...], NoDecode] = Field(
        default=tuple(f"{role}={role}" for role in ROLES),
        description=f"GROUP=ROLE, with commas or as JSON; roles: {', '.join(ROLES)}.",
    )
    web_claims_per_minute: int = Field(
        default=60, ge=1, description="Claims of one person in a minute, in each process."
    )
    web_requests_per_minute: int = Field(
        default=1200, ge=1, description="Requests of one person or token in a minute, in each process."
    )
    intake_sqs_url: str | None = Field(
        default=None,
        description="Queue of S3 event notifications at SQS: `dnf-worker web` checks what they name.",
    )
    webhook_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Addresses or networks that are not of the internet and that webhooks may reach.",
    )
    webhook_ca_file: FilePath | None = Field(
        default=None, description="PEM of authorities that webhooks trust besides the system's."
    )
    webhook_retention_seconds: int = Field(
        default=14 * 86400, ge=3600, description="How long events are kept for replays of webhooks."
    )
    expected_checks_per_second: float | None = Field(
        default=None,
        gt=0,
        description="Expected rate of one worker; unset means what workers measure at their start.",
    )
    source: str = Field(default="dnf-moderation", min_length=1, description="CloudEvents `source`.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Log level.")
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, JSON elsewhere."
    )

    @field_validator("allowed_buckets", "web_trusted_proxies", "web_roles", "webhook_networks", mode="before")
    @classmethod
    def _list_of_names(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError as error:
                raise ValueError("must be names separated by commas, or a JSON list of names") from error
        return tuple(name for part in value.split(",") if (name := part.strip()))

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr) -> SecretStr:
        parts = _parts(value, "redis", "rediss")
        # Two libraries read the URL, and differ in what they make of the rest; an ssl_ option could switch
        # the verification of the certificate off in one of them.
        if parts.query or parts.fragment or not _DATABASE.fullmatch(parts.path):
            raise ValueError(
                "takes no options, and no path but the number of a database: redis://HOST:PORT/0"
            )
        return value

    @field_validator("database_url", "database_owner_url")
    @classmethod
    def _database(cls, value: SecretStr | None) -> SecretStr | None:
        if value and "password=" in _parts(value, "postgresql", "postgres").query:
            raise ValueError("takes the password before the host: postgresql://USER:PASSWORD@HOST/DATABASE")
        return value

    @field_validator("s3_endpoint_url")
    @classmethod
    def _s3_host(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not _HOST.fullmatch(_parts(value, "http", "https").hostname or ""):
            raise ValueError("must name a host of letters, digits, dots and hyphens, or an IPv6 address")
        return value

    @field_validator("allowed_buckets")
    @classmethod
    def _whole_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            bucket, slash, prefix = entry.partition("/")
            # Without its slash, `uploads/in` would let `uploads/internal` be read too.
            if not bucket or (slash and not prefix.endswith("/")):
                raise ValueError(f"{entry!r} is neither BUCKET nor BUCKET/PREFIX/, which ends in a slash")
        return value

    @field_validator("web_trusted_proxies", "webhook_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            try:
                ip_network(entry)
            except ValueError as error:
                raise ValueError(
                    f"{entry!r} is neither an address nor a network such as 10.0.0.0/8"
                ) from error
        return value

    @field_validator("web_roles")
    @classmethod
    def _group_and_role(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            group, _, role = entry.rpartition("=")
            if not group or role not in ROLES:
                raise ValueError(f"{entry!r} is not GROUP=ROLE with one of the roles {', '.join(ROLES)}")
        return value

    @field_validator("web_public_url")
    @classmethod
    def _origin(cls, value: str | None) -> str | None:
        if not value:
            return None
        parts = _parts(SecretStr(value), "http", "https")
        if not parts.hostname or parts.path not in {"", "/"} or parts.query or parts.fragment:
            raise ValueError("must be an origin, such as https://review.example.org")
        return f"{parts.scheme}://{parts.netloc}".lower()

    @field_validator("web_jwt_keys")
    @classmethod
    def _keys(cls, value: str | None) -> str | None:
        if value and "://" in value:
            _parts(SecretStr(value), "https")
        return value or None

    @model_validator(mode="after")
    def _complete_jwt(self) -> "Settings":
        if self.web_jwt_keys and not (self.web_jwt_issuer and self.web_jwt_audience):
            raise ValueError("web_jwt_keys needs web_jwt_issuer and web_jwt_audience")
        return self

    @model_validator(mode="after")
    def _deadline_below_visibility(self) -> "Settings":
        if self.check_deadline_seconds >= self.visibility_timeout_seconds:
            raise ValueError("check_deadline_seconds must be below visibility_timeout_seconds")
        return self

    @property
    def broker(self) -> BrokerSettings:
        """The broker and how to trust it."""
        return BrokerSettings(
            self.redis_url, self.redis_ca_file, self.redis_certificate_file, self.redis_key_file
        )

    @property
    def storage(self) -> StorageSettings:
        """The object store; a fetch takes at most half of a check's time, and no single wait more."""
        fetch_seconds = self.check_deadline_seconds / 2
        return StorageSettings(
            endpoint_url=self.s3_endpoint_url,
            region=self.s3_region,
            addressing=self._addressing,
            access_key_id=self.s3_access_key_id,
            secret_access_key=self.s3_secret_access_key,
            timeout_seconds=min(self.s3_timeout_seconds, fetch_seconds),
            fetch_seconds=fetch_seconds,
            allowed_buckets=self.allowed_buckets,
            upload_bucket=self.upload_bucket,
            thumbnail_bucket=self.thumbnail_bucket,
            max_bytes=self.max_bytes,
            connections=self.threads,
            secrets=self.secrets(),
        )

    @property
    def web(self) -> WebSettings:
        """The page for moderators."""
        return WebSettings(
            host=self.web_host,
            port=self.web_port,
            public_url=self.web_public_url,
            trusted_proxies=self.web_trusted_proxies,
            user_header=self.web_user_header,
            name_header=self.web_name_header,
            groups_header=self.web_groups_header,
            jwt_keys=self.web_jwt_keys,
            jwt_header=self.web_jwt_header,
            jwt_issuer=self.web_jwt_issuer,
            jwt_audience=self.web_jwt_audience,
            jwt_groups_claim=self.web_jwt_groups_claim,
            roles={
                role: frozenset(
                    entry.removesuffix(f"={role}") for entry in self.web_roles if entry.endswith(f"={role}")
                )
                for role in ROLES
            },
            claims_per_minute=self.web_claims_per_minute,
            requests_per_minute=self.web_requests_per_minute,
        )

    @property
    def database(self) -> DatabaseSettings:
        """The database and who may change its schema."""
        return DatabaseSettings(self.database_url, self.database_owner_url, self.database_connections)

    @property
    def review(self) -> ReviewSettings:
        """What people see, and for how long."""
        return ReviewSettings(
            audit_shares={
                "real": self.review_audit_share_real,
                "generated": self.review_audit_share_generated,
            },
            double_share=self.review_double_share,
            daily_limit=self.review_daily_limit,
            lease_seconds=self.review_lease_seconds,
            undo_seconds=self.review_undo_seconds,
            due_seconds=self.review_due_seconds,
            source=self.source,
        )

    @property
    def webhooks(self) -> WebhookSettings:
        """Where webhooks may go."""
        return WebhookSettings(
            networks=self.webhook_networks,
            ca_file=self.webhook_ca_file,
            retention_seconds=self.webhook_retention_seconds,
            public_url=self.web_public_url,
            source=self.source,
        )

    @property
    def _addressing(self) -> Literal["auto", "path", "virtual"]:
        return "path" if self.s3_addressing == "auto" and self.s3_endpoint_url else self.s3_addressing

    @property
    def longest_retry_seconds(self) -> float:
        """The longest back-off: it ends before the visibility timeout does."""
        return min(30.0, self.visibility_timeout_seconds / 4)

    def secrets(self) -> frozenset[str]:
        """Return every text that must not be shown: the keys, and the passwords in URLs as written."""
        keys = [key.get_secret_value() for key in (self.s3_access_key_id, self.s3_secret_access_key) if key]
        urls = [url.get_secret_value() for name in _URLS if (url := getattr(self, name))]
        passwords = [urlsplit(url).password or "" for url in urls]
        return frozenset(text for text in [*keys, *passwords, *map(unquote, passwords)] if text)

    def shown(self) -> dict[str, str]:
        """Return each setting's value as text for people, secrets and the passwords in URLs masked."""
        values = {name: _shown(getattr(self, name)) for name in type(self).model_fields}
        for name in _URLS:
            if url := getattr(self, name):
                values[name] = without_password(url.get_secret_value())
        return values


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return each variable that begins like a setting and is none, with a setting that it resembles.

    Such a variable has no effect: "DNF_REDS_URL (DNF_REDIS_URL?)".
    """
    names = [f"DNF_{name.upper()}" for name in Settings.model_fields]
    found = []
    for variable in sorted(environment):
        if variable.upper().startswith("DNF_") and variable.upper() not in names:
            similar = get_close_matches(variable.upper(), names, n=1, cutoff=0.8)
            found.append(f"{variable} ({similar[0]}?)" if similar else variable)
    return found


def without_password(url: str) -> str:
    """Return a URL with its user's password masked."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{MASK}@{host}"))


def _parts(url: SecretStr, *schemes: str) -> SplitResult:
    """Return the parts of a URL; the error says nothing of it, since it may hold a password."""
    try:
        parts = urlsplit(url.get_secret_value())
        unreadable = parts.port == 0 or "@" in f"{parts.path}{parts.query}{parts.fragment}"
    except ValueError:
        unreadable = True
    if unreadable:
        raise ValueError("cannot be read: write / ? # @ in a password as %2F %3F %23 %40")
    if parts.scheme not in schemes:
        raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    return parts


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, tuple):
        return ", ".join(value)
    return "" if value is None else str(value)
