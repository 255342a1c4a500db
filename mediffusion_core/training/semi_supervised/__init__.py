"""Pseudo-labels for unlabelled images."""
