"""Experiment settings, validated, and their command-line flags."""
