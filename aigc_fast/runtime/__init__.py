"""What makes an op of its pieces: native modules, dispatch, choice, and what a call obeys."""
