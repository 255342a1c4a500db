"""`python -m deployment.supernode`: Flower's SuperNode, with the options of `flower-supernode`."""

from flwr.supernode.cli import flower_supernode

from deployment.patience import allow_slow_starts

if __name__ == "__main__":
    allow_slow_starts()
    flower_supernode()
