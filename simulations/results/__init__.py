"""Tables of results, from what is on disk."""
