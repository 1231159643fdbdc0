"""Between the shell and the commands: options, settings, the console."""
