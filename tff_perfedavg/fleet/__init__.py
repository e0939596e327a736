"""Fleet simulation: availability of devices, cohorts and the cost of rounds.

NumPy alone.
"""
