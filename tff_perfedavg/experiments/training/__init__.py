"""Meta-training: rounds, resumed where they were left, watched."""
