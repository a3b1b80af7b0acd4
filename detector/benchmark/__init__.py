"""How fast the detector is, and the published pipeline beside it."""
