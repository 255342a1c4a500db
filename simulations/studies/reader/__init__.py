"""The reader study: blinded pairs of counterfactuals on a page, and the scores of the answers."""
