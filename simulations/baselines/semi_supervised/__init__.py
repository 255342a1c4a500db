"""Federated semi-supervised baselines: losses of unlabelled images, and how a server averages."""
