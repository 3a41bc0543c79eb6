"""The command line: one small module per command, whose heavy imports wait until the command runs."""
