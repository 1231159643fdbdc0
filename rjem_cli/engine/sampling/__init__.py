"""Langevin chains, the sampling pipeline, and where samples are written."""
