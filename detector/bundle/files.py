"""A bundle, a detector on disk: its manifest, safetensors weights, their digests and a model card."""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from platformdirs import user_cache_path
from pydantic import JsonValue, ValidationError

from detector.bundle.manifest import Manifest

MANIFEST_FILE = "bundle.json"
MODEL_CARD_FILE = "MODEL_CARD.md"
MAX_MANIFEST_BYTES = 1 << 20
# A network's files in diffusers' format. A third one, such as an index of shards, could name other paths.
_UNET_FILES = ("config.json", "diffusion_pytorch_model.safetensors")

BundleReason = Literal[
    "not_found",
    "malformed",
    "digest_mismatch",
    "file_not_listed",
    "file_unreadable",
    "cache_unusable",
    "unreachable",
]

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
    def unet_folder(self) -> Path | None:
        """The U-Net's folder in diffusers' format; None when the feature needs no U-Net."""
        return self.folder / self.manifest.unet.folder if self.manifest.unet else None


def resolve(reference: str | Path, *, digest: str | None = None) -> Bundle:
    """Find a bundle by its folder, the name of a shipped bundle, `s3://bucket/prefix` or a hub id.

    Remote bundles are cached on disk by their digest. boto3 reads its own settings for S3. The digest of
    every file is verified, and with `digest` that of the manifest too. Raises `BundleError`.
    """
    text = str(reference)
    if text.startswith("s3://"):
        return _from_s3(text, digest)
    if Path(text).is_dir():
        return open_bundle(Path(text), digest=digest)
    if (_SHIPPED / text / MANIFEST_FILE).is_file():
        return open_bundle(_SHIPPED / text, digest=digest)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return _from_hub(text, digest)
    raise BundleError("not_found", f"There is no bundle at {text}.")


def open_bundle(folder: Path, *, digest: str | None = None) -> Bundle:
    """Read the manifest in a folder and verify that it lists every file there with its digest.

    With `digest`, the manifest must have that SHA-256. Raises `BundleError`.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BundleError("not_found", f"There is no {MANIFEST_FILE} in {folder}.")
    try:
        content = path.read_bytes()
        found, manifest = _parse(content, str(folder), digest)
        _verify_files(folder, manifest)
    except OSError as error:
        raise BundleError("file_unreadable", f"{error.filename} cannot be read: {error.strerror}.") from error
    return Bundle(folder, manifest, found)


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


def _parse(content: bytes, source: str, pinned: str | None) -> tuple[str, Manifest]:
    """Return the manifest's digest and the manifest."""
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError("malformed", f"The manifest of {source} is larger than {MAX_MANIFEST_BYTES} bytes.")
    digest = hashlib.sha256(content).hexdigest()
    if pinned and digest != pinned:
        raise BundleError(
            "digest_mismatch", f"The manifest of {source} has the digest {digest}, not the pinned {pinned}."
        )
    try:
        return digest, Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError("malformed", f"The manifest of {source}: {field}: {first['msg']}.") from error


def _verify_files(folder: Path, manifest: Manifest) -> None:
    """Raise `BundleError` unless the folder has the listed files, and no others."""
    needed = {manifest.classifier_file, *_unet_files(manifest)}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not _is_folder(path)}
    if unlisted := (needed | present) - manifest.files.keys() - {MANIFEST_FILE, MODEL_CARD_FILE}:
        raise BundleError(
            "file_not_listed", f"{folder / min(unlisted)} is not listed with its digest in the manifest."
        )
    if manifest.unet:
        others = {name for name in manifest.files if name.startswith(f"{manifest.unet.folder}/")} - needed
        if others:
            raise BundleError("malformed", f"{folder / min(others)} is no part of a U-Net in one file.")
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.exists():
            raise BundleError("digest_mismatch", f"{path} is listed in the manifest but missing.")
        if name not in present or path.is_symlink() or not path.is_file():
            raise BundleError("malformed", f"{path} is not a regular file inside the bundle.")
        if _sha256(path) != expected:
            raise BundleError("digest_mismatch", f"{path} does not have the digest that the manifest lists.")


def _unet_files(manifest: Manifest) -> set[str]:
    return {f"{manifest.unet.folder}/{name}" for name in _UNET_FILES} if manifest.unet else set()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_s3(uri: str, digest: str | None) -> Bundle:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    base = f"{prefix}/" if prefix else ""
    try:
        s3 = boto3.Session().client("s3")
        reply = s3.get_object(Bucket=bucket, Key=f"{base}{MANIFEST_FILE}")
        content = reply["Body"].read(MAX_MANIFEST_BYTES + 1)
        return _cached(
            uri,
            content,
            lambda name, target: s3.download_file(bucket, f"{base}{name}", str(target)),
            digest,
        )
    except ClientError as error:
        reason: BundleReason = "not_found" if error.response["Error"]["Code"] in _ABSENT else "unreachable"
        raise BundleError(reason, f"{uri} cannot be read: {error}.") from error
    except BotoCoreError as error:
        raise BundleError("unreachable", f"{uri} cannot be reached: {error}.") from error


def _from_hub(hub_id: str, digest: str | None) -> Bundle:
    from huggingface_hub import hf_hub_download

    def download(name: str, target: Path | None = None) -> Path:
        try:
            found = Path(hf_hub_download(hub_id, name))  # nosec B615
        except Exception as error:  # the hub client raises errors of several libraries
            raise BundleError(
                "unreachable", f"{hub_id} is not a folder or a shipped bundle, nor can the hub provide it."
            ) from error
        if target:
            shutil.copyfile(found, target)
        return found

    with download(MANIFEST_FILE).open("rb") as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    return _cached(hub_id, content, download, digest)


def _cached(
    source: str, content: bytes, download: Callable[[str, Path], object], pinned: str | None
) -> Bundle:
    """Return the bundle with this manifest from the cache; `download(name, path)` gets what is not there.

    Whatever lies in its place and is not the whole bundle is replaced. A lock lets one process download.
    """
    digest, manifest = _parse(content, source, pinned)
    cache = user_cache_path("dnf-moderation") / "bundles"
    folder, partial = cache / digest, cache / f"{digest}.partial"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{digest}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(BundleError):
                return open_bundle(folder, digest=digest)
            for leftover in (folder, partial):
                _remove(leftover)
            partial.mkdir()
            (partial / MANIFEST_FILE).write_bytes(content)
            for name in manifest.files:
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                download(name, target)
            verified = open_bundle(partial, digest=digest)
            partial.rename(folder)
            return replace(verified, folder=folder)
    except OSError as error:
        raise BundleError(
            "cache_unusable", f"The cache of bundles at {cache} cannot be used: {error}; set XDG_CACHE_HOME."
        ) from error


def _remove(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
