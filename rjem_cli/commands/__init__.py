"""One file a subcommand: parse, settle the config, run the engine, show what came of it."""
