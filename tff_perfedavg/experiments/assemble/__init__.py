"""From settings to users, model, runtime and learning process."""
