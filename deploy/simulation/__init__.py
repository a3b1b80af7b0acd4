"""How many workers, how much Redis, what it costs; and a day of traffic under the autoscaler, simulated."""
