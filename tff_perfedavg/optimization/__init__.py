"""The mathematics of local training and adaptation, on tensors."""
