"""rjem: Robust JEM, one network that is classifier, robust classifier and energy-based generator."""

__version__ = "0.1.0"
