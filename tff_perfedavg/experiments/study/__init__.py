"""Studies of many runs: sweeps, the paper's table, comparisons and advice."""
