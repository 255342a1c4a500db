"""The ledger of a site: what its patients have spent, over all runs."""
