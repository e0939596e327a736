"""The jobs a user runs: train, evaluate, compare."""
