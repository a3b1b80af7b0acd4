"""A detector on disk: manifest, weights, calibration, digests."""
