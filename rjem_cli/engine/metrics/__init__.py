"""Scores of samples and of classifiers."""
