"""Moving faces whose place is known: made from photographs, tracked, scored."""
