"""A corpus from decisions: the pictures, with the labels that people gave them, and a manifest."""

import csv
import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.contract.messages import Decision, ImageCheck
from worker.database.database import Database
from worker.reviews.published import published_decisions
from worker.settings import Settings
from worker.storage import Storage, StorageRejectedError

MANIFEST_FILE = "manifest.csv"
_COLUMNS = ("path", "label", "family", "split", "group")
# Of a hundred uploaders.
_TEST, _VALIDATION = 10, 20


class CorpusFolderError(ValueError):
    """The folder cannot take a corpus."""


@dataclass(frozen=True)
class WrittenCorpus:
    """What a corpus has."""

    real: int
    generated: int
    #: Decided pictures that it has not, by the reason.
    left_out: dict[str, int]


def write_corpus(
    settings: Settings,
    database: Database,
    folder: Path,
    *,
    uploader: str | None,
    bases: Collection[str] = (),
) -> WrittenCorpus:
    """Write the pictures that people called *real* or *generated* to a new folder, each content once.

    With `uploader`, a key of the metadata, one uploader's pictures are one group in one split: 80 % of the
    uploaders in `train`, 10 % each in `val` and `test`. Otherwise each picture is by itself. `bases` limits
    the decisions. The bytes are verified against the digest of the verdict. Raises `CorpusFolderError`,
    OSError, `StorageUnavailableError` and `DatabaseUnavailableError`.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CorpusFolderError(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    storage = Storage(settings.storage)
    left_out: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    with (folder / MANIFEST_FILE).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for decision, uri in _decided(settings, database, bases, left_out):
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            try:
                data = storage.fetch(ImageCheck(bucket=bucket, key=key, sha256=decision.sha256)).data
            except StorageRejectedError as error:
                left_out[error.reason] += 1
                continue
            path = f"{decision.outcome}/{decision.sha256[:2]}/{decision.sha256}"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
            group = _uploader(decision, uploader) or decision.sha256
            rows.writerow([path, decision.outcome, f"uploads-{decision.outcome}", _split(group), group])
            counts[decision.outcome] += 1
    return WrittenCorpus(counts["real"], counts["generated"], dict(left_out))


def _decided(
    settings: Settings, database: Database, bases: Collection[str], left_out: Counter[str]
) -> Iterator[tuple[Decision, str]]:
    """Yield the decision in force on each content, with its object; contents with two labels are left out."""
    newest: dict[str, tuple[Decision, str]] = {}
    for event in published_decisions(database, settings.review):
        newest[event.data.check_id] = (event.data, event.subject)
    by_content: dict[str, tuple[Decision, str]] = {}
    labels: dict[str, set[str]] = {}
    for decision, uri in newest.values():
        if decision.outcome not in {"real", "generated"}:
            left_out[decision.outcome] += 1
        elif bases and decision.basis not in bases:
            left_out["other_basis"] += 1
        else:
            labels.setdefault(decision.sha256, set()).add(decision.outcome)
            by_content[decision.sha256] = (decision, uri)
    for sha256, found in by_content.items():
        if len(labels[sha256]) > 1:
            left_out["contradictory"] += 1
        else:
            yield found


def _uploader(decision: Decision, key: str | None) -> str | None:
    """Return a name for the uploader that tells nobody who it is; None where the metadata has none."""
    value = decision.metadata.get(key) if key else None
    return None if value is None else hashlib.sha256(f"{key}\n{value}".encode()).hexdigest()[:16]


def _split(group: str) -> str:
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) % 100
    return "test" if place < _TEST else "val" if place < _VALIDATION else "train"
