"""The alignment networks: what they are trained on, labels, losses, publication."""
