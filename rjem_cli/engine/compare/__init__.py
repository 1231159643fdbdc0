"""Comparisons: measured and quoted scores in one table, and the paper's table reproduced."""
