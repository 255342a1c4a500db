"""What a run leaves on disk, and the export for others."""
