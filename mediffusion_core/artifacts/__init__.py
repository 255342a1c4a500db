"""What a run leaves behind: its folder, checkpoints, pictures, report, exported pipeline."""
