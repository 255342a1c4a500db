"""The live view of a run: its state from the files of its folder, as a page and as text."""
