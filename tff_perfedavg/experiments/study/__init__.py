"""Many runs: grids, the paper's table, the comparison of the demo."""
