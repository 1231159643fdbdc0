"""Every option of rjem, declared once: its help text with units, its default and its range."""
