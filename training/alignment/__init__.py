"""Training of the alignment networks: items, labels, losses, publication."""
