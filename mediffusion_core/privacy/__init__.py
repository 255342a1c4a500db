"""Differential privacy: what training costs a patient, and what a site has spent."""
