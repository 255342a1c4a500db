"""Running one simulated federation: processes, app bundle, progress."""
