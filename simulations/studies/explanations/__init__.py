"""The study of explanations: maps of the same decisions by several methods, and their figures.

The difference of a counterfactual and its source is a map too. Deletion and insertion test whether
the classifier depends on its pixels, localisation whether they are those of the finding.
"""
