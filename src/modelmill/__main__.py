"""`python -m modelmill`: the command line."""

from modelmill.cli.main import main

main()
