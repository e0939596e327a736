"""Where the mathematics runs: federated computations."""
