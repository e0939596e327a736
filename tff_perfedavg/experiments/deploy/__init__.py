"""From a trained run to a file for devices, and a fleet that tries it."""
