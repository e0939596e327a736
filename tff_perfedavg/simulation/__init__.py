"""Cohorts, and the TFF runtime on this machine."""
