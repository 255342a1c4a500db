"""The command line, the launcher around `flwr run`, and the studies."""
