"""A rendered surround-view world, questions about it with exact answers, and a small model trained on it."""
