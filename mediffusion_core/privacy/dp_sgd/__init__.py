"""DP-SGD: the private rounds of both stages, and the check of their gradients."""
