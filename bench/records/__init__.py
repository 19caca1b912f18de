"""Records of scores: what they are made of, how they are written and checked."""
