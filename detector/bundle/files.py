"""A bundle, a detector on disk: its manifest, safetensors weights, their digests and a model card."""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from platformdirs import user_cache_path
from pydantic import JsonValue, ValidationError

from detector.bundle.manifest import Manifest

MANIFEST_FILE = "bundle.json"
MODEL_CARD_FILE = "MODEL_CARD.md"
MAX_MANIFEST_BYTES = 1 << 20

BundleReason = Literal["not_found", "malformed", "digest_mismatch", "unreachable"]

_SHIPPED = Path(__file__).parents[1] / "bundles"
_ABSENT = {"NoSuchKey", "NoSuchBucket", "404"}


class BundleError(Exception):
    """A bundle cannot be found, read or written; `reason` is one of `BundleReason`, `str()` the detail."""

    def __init__(self, reason: BundleReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: BundleReason = reason


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were verified."""

    folder: Path
    manifest: Manifest
    #: SHA-256 of bundle.json in hex; it covers the weights, whose digests the manifest lists.
    digest: str

    @property
    def classifier_path(self) -> Path:
        """The classifier's safetensors file."""
        return self.folder / self.manifest.classifier_file

    @property
    def unet_location(self) -> str | None:
        """The U-Net's diffusers folder or hub id; None when the feature needs no U-Net."""
        source = self.manifest.unet
        if source is None:
            return None
        return str(self.folder / source.folder) if source.folder else str(source.hub_id)


def resolve(reference: str | Path) -> Bundle:
    """Find a bundle by its folder, the name of a shipped bundle, `s3://bucket/prefix` or a hub id.

    Remote bundles are cached on disk by their digest. boto3 reads its own settings for S3. The digest of
    every file is verified. Raises `BundleError`.
    """
    text = str(reference)
    if text.startswith("s3://"):
        return _from_s3(text)
    if Path(text).is_dir():
        return open_bundle(Path(text))
    if (_SHIPPED / text / MANIFEST_FILE).is_file():
        return open_bundle(_SHIPPED / text)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return _from_hub(text)
    raise BundleError("not_found", f"There is no bundle at {text}.")


def open_bundle(folder: Path) -> Bundle:
    """Read the manifest in a folder and verify the digest of each file it lists. Raises `BundleError`."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BundleError("not_found", f"There is no {MANIFEST_FILE} in {folder}.")
    content = path.read_bytes()
    manifest = _parse(content, str(folder))
    for name, expected in manifest.files.items():
        _verify(folder / name, expected)
    return Bundle(folder, manifest, hashlib.sha256(content).hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Write bundle.json with the digests of all files in `folder`, where the weights already are."""
    files = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {MANIFEST_FILE, MODEL_CARD_FILE}
    }
    complete = manifest.model_copy(update={"files": files})
    (folder / MANIFEST_FILE).write_text(complete.model_dump_json(indent=2) + "\n")
    return open_bundle(folder)


def record_figures(bundle: Bundle, name: str, figures: Mapping[str, JsonValue]) -> Bundle:
    """Store measured figures under `name` in a bundle's manifest; its digest changes."""
    complete = {**bundle.manifest.figures, name: dict(figures)}
    return write_manifest(bundle.folder, bundle.manifest.model_copy(update={"figures": complete}))


def _parse(content: bytes, source: str) -> Manifest:
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError("malformed", f"The manifest of {source} is larger than {MAX_MANIFEST_BYTES} bytes.")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError("malformed", f"The manifest of {source}: {field}: {first['msg']}.") from error


def _verify(path: Path, expected: str) -> None:
    if not path.is_file():
        raise BundleError("digest_mismatch", f"{path} is listed in the manifest but missing.")
    if _sha256(path) != expected:
        raise BundleError("digest_mismatch", f"{path} does not have the digest that the manifest lists.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_s3(uri: str) -> Bundle:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    base = f"{prefix}/" if prefix else ""
    cache = user_cache_path("dnf-moderation") / "bundles"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        s3 = boto3.client("s3")
        reply = s3.get_object(Bucket=bucket, Key=f"{base}{MANIFEST_FILE}")
        content = reply["Body"].read(MAX_MANIFEST_BYTES + 1)
        manifest = _parse(content, uri)
        folder = cache / hashlib.sha256(content).hexdigest()
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                partial = Path(temporary) / "bundle"
                partial.mkdir()
                for name in manifest.files:
                    target = partial / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    s3.download_file(bucket, f"{base}{name}", str(target))
                (partial / MANIFEST_FILE).write_bytes(content)
                open_bundle(partial)
                _move(partial, folder)
    except ClientError as error:
        reason: BundleReason = "not_found" if error.response["Error"]["Code"] in _ABSENT else "unreachable"
        raise BundleError(reason, f"{uri} cannot be read: {error}.") from error
    except BotoCoreError as error:
        raise BundleError("unreachable", f"{uri} cannot be reached: {error}.") from error
    return open_bundle(folder)


def _move(partial: Path, folder: Path) -> None:
    """Move a complete bundle into the cache in one step, so that nobody sees half of it."""
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process stored the same content first
            raise


def _from_hub(hub_id: str) -> Bundle:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.md"])  # nosec B615
    except Exception as error:  # the hub client raises errors of several libraries
        raise BundleError(
            "unreachable", f"{hub_id} is not a folder or a shipped bundle, nor can the hub provide it."
        ) from error
    return open_bundle(Path(folder))
