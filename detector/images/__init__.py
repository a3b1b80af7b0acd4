"""From uploaded bytes to pixels and views, and back to a thumbnail."""
