"""From the sites' weights to the next global weights."""
