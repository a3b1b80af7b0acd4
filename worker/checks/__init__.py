"""What becomes of a check: the task, its batch, its attempts and retries."""
