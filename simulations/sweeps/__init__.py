"""Sweeps: runs over a grid of settings, or a search among them, side by side."""
