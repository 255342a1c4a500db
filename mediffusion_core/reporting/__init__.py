"""Charts, pictures, reports and cards."""
