"""One simulated federation: launcher, processes, app bundle, progress."""
