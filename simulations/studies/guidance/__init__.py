"""How counterfactuals depend on guidance, and how ours stand beside the published procedure.

A grid of scale, start and steps runs on validation patients, where its knee is found; what is then
reported beside the reference is measured on test patients, whom nothing was chosen by.
"""
