"""A trained model: it classifies, samples and explains."""
