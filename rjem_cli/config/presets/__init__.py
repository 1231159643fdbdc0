"""Presets of `rjem train`, one YAML file each."""
