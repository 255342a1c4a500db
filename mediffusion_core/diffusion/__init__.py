"""Noise process, losses, samplers, guidance: pure functions that read like the papers."""
