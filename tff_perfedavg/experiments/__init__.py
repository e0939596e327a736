"""Experiments: training, evaluation, baselines, deployment, reports and studies."""
