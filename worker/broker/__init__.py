"""Redis as broker: connection, transport, verdict stream, dead letters, faults."""
