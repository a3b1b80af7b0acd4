"""Valkey, SeaweedFS and PostgreSQL on this machine, for the demonstration and the tests."""
