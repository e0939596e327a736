"""Federated computations: client data forms, client work, learning processes."""
