"""Checkpoints of other projects: read them safely, recognise their layout, and write it."""
