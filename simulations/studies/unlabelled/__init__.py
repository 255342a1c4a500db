"""The study of unlabelled images: the same labels with and without them."""
