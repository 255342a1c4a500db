"""Private training: clipped gradients with noise, their accounting, and the privacy ledger."""
