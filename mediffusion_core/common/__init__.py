"""Errors, files, hashes and devices, for all other packages of the core."""
