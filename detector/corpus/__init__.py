"""Labelled pictures on disk: folders, manifests and published layouts."""
