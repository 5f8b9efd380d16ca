"""Clips of moving faces with exact ground truth: made from photographs, tracked, scored."""
