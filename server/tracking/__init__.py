"""Trackers of a run: what they get, where they stand, and one file for each of them."""
