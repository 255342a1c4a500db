"""How many labels are enough? Methods, labelled fractions and seeds held against each other."""
