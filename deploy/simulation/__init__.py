"""A day of traffic under the autoscaler, simulated; the chart's scaling figures come from it."""
