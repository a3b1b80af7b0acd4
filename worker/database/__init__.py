"""PostgreSQL: connections, transactions and the schema."""
