"""Utility and leakage of private runs against ε."""
