"""The files of a run, and the export of its model."""
