"""Pure functional models: weights in, outputs out."""
