"""Builders of users, model, runtime and learning process from settings."""
