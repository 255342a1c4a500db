"""The study of generation: distances, fidelity, diversity and copies of samples."""
