"""`modelmill` and `python -m modelmill`: the command line, from its first import on."""

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded ends in a word as well."""
    try:
        from modelmill.cli.main import main as run

        run()
    except KeyboardInterrupt:
        # Nothing of ours may be there yet; this is the number of `Interrupted`.
        sys.stderr.write("Interrupted.\n")
        sys.exit(os.EX_TEMPFAIL)


if __name__ == "__main__":
    main()
