"""One file per command: read its options, run the engine, show the result."""
