"""The lock of requirements."""

import re
from pathlib import Path

LOCK = Path(__file__).parents[2] / "requirements.lock"
PINNED = re.compile(r"[a-z0-9][a-z0-9._-]*(\[[a-z,]+\])?==[^\s;*]+( ;.*)?\s*")


def test_every_requirement_is_pinned_to_a_version_and_to_hashes() -> None:
    """Each entry has one version and at least one SHA-256, and no other source."""
    entries = re.split(r"\n(?=\S)", LOCK.read_text().replace("\\\n", " ").strip())
    entries = [entry for entry in entries if not entry.startswith("#")]
    assert len(entries) > 50
    for entry in entries:
        requirement, *hashes = re.split(r"\s+--hash=sha256:", entry)
        assert PINNED.fullmatch(requirement), requirement
        assert hashes, requirement
        for digest in hashes:
            assert re.match(r"[0-9a-f]{64}(\s|$)", digest), requirement
