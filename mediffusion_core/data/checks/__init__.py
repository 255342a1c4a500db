"""Checks of a data set, before anything trains."""
