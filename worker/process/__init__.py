"""One worker process: start, shutdown, supervision, health."""
