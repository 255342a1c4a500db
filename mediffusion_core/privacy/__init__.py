"""Private training: clipped gradients with noise, what they cost, and what voids the guarantee."""
