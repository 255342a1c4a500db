"""Secure aggregation: sums over sites that tell no site's own part (Bonawitz et al., CCS 2017)."""
