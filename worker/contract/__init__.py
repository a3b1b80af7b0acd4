"""What producers write and consumers read."""
