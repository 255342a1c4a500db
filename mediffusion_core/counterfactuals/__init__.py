"""Counterfactuals by classifier guidance: inversion, denoising, search."""
