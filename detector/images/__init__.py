"""Uploaded bytes to pixels and views, and a feature to a thumbnail."""
