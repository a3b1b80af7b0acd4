"""What an operator runs beside the workers: doctor, exporter, capacity plan."""
