"""Logs, metrics, traces, timings, and the HTTP server that shows them."""
