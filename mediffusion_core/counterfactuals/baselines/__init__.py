"""Other ways to counterfactuals, for comparison with ours."""
