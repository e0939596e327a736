"""What users make of a model: measured, compared, kept."""
