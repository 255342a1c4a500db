"""The privacy ledger of a site: charges of its patients over all runs."""
