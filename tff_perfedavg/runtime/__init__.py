"""TFF runtime: its workers, local and remote, their executors and compiler."""
