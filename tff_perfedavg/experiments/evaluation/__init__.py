"""Evaluation: per-user results, baselines, statistics and personalized weights."""
