"""Webhooks: events to the endpoints of platforms, signed, retried, and only to addresses of the internet."""
