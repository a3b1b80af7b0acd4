"""Why a score says little about a picture, without numpy: producers and consumers of events read it too."""

from typing import Literal

#: too_small: under 128 pixels. too_plain: no fine texture anywhere, such as a ramp or a flat colour.
#: two_tone: nearly all of it in two narrow ranges of brightness, or half of it in one among hard edges, such
#: as line art, a QR code or a page of text. uncorrelated: neighbouring pixels have little in common, as in
#: noise and small print.
Doubt = Literal["too_small", "too_plain", "two_tone", "uncorrelated"]
Confidence = Literal["in domain", "out of domain"]


def confidence(doubt: Doubt | None) -> Confidence:
    """Return whether a picture is of the kind that detectors are trained on."""
    return "out of domain" if doubt else "in domain"
