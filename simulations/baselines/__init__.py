"""What the joint network is held against: a plain classifier of pixels, and its FixMatch.

They see the same images, splits, labels and sites, are averaged over the sites in the same way, and
are chosen and judged by the same code. Only the network and its objective are others.
"""
