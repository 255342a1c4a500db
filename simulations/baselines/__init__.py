"""Baselines of the joint network: a classifier of pixels, its FixMatch, and external guidance.

A baseline has the same images, splits, labels and sites as the joint network. Its weights are
averaged, selected and evaluated by the same code. Only the network and its objective differ.
"""
