"""Presets: YAML files with values for `rjem train`."""
