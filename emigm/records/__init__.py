"""Records of what was run, and what is read from them."""
