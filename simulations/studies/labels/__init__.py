"""The study of labels: methods, labelled fractions and seeds, and their AUC side by side."""
