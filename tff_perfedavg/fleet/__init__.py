"""Fleet: which users take part in a round. NumPy alone."""
