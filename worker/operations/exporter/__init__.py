"""Queues, streams and fleet as Prometheus metrics."""
