"""What puts the product on machines, and what its documents are generated from."""
