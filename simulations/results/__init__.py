"""Tables of results, from files on disk."""
