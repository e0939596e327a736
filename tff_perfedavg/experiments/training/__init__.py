"""Meta-training: round loop, callbacks, checkpoints and resuming."""
