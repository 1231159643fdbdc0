"""Comparisons: rows of scores, measured or published, in one table; and the paper's Table 1 reproduced."""
