"""Explanations of the same decisions by several methods, held against each other by figures.

A counterfactual's difference is a map like any other: it can be asked whether the pixels that it
names are those that the classifier lives on, and whether they are those of the finding.
"""
