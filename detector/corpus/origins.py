"""What a training saw: the generators and the sources of its pictures."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from detector.corpus.corpus import Sample

Seen = Literal["both", "generator", "source", "neither"]


@dataclass(frozen=True)
class Origins:
    """Names of generators and of sources."""

    generators: frozenset[str]
    sources: frozenset[str]

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> "Origins":
        """Collect the generators and sources of samples."""
        listed = list(samples)
        return cls(
            frozenset(name for sample in listed for name in sample.generators),
            frozenset(sample.origin for sample in listed),
        )

    @classmethod
    def parsed(cls, recorded: JsonValue) -> "Origins | None":
        """Return the origins that `recorded` says; None if it is nothing of the kind."""
        match recorded:
            case {"generators": [*generators], "sources": [*sources]}:
                return cls(frozenset(map(str, generators)), frozenset(map(str, sources)))
        return None

    def recorded(self) -> dict[str, JsonValue]:
        """Return JSON values that `parsed` reads."""
        return {"generators": [*sorted(self.generators)], "sources": [*sorted(self.sources)]}

    def seen(self, samples: Iterable[Sample]) -> Seen:
        """Return what of some pictures is among these: a generator, a source, both or neither."""
        others = Origins.of(samples)
        generator = not self.generators.isdisjoint(others.generators)
        source = not self.sources.isdisjoint(others.sources)
        if generator:
            return "both" if source else "generator"
        return "source" if source else "neither"
