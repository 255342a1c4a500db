"""The study of membership inference on the model of a run."""
