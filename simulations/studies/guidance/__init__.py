"""The study of guidance: a grid of settings, ablations, and the published procedure.

The grid of scale, start and steps uses validation patients; its knee is found there. The comparison
with the published procedure uses test patients, on whom nothing was selected.
"""
