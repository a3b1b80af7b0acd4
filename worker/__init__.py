"""The service: checks from the queue, verdicts to the stream."""
