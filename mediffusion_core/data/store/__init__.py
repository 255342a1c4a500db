"""The prepared store: images decoded once, checked and kept as arrays."""
