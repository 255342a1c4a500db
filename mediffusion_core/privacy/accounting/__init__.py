"""What private steps and statistics cost, before and after a run."""
