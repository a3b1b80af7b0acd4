"""The relay: verdicts into the database, decisions out to the stream, webhooks to platforms."""
