"""ASK: the command line."""
