"""The page for moderators and the HTTP API."""
