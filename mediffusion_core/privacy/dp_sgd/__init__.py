"""DP-SGD: the private step of each stage, and its check."""
