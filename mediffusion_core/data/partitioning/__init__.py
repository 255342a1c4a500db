"""Which site holds which images, and what each image is used for."""
