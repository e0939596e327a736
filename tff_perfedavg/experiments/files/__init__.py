"""Files of runs: paths, checkpoints, metrics, models and per-user results."""
