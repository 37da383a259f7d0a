"""The command line: one file per command, arguments and rendering, no logic."""
