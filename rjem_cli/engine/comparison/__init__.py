"""Rows of measured and quoted scores beside each other."""
