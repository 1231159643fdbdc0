"""What a model or its samples are worth."""
