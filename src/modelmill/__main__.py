"""`python -m modelmill`, and the `modelmill` command itself."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is heard while it is still being read, too."""
    try:
        from modelmill.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(75)  # errors.Interrupted, which may not have been read yet


if __name__ == "__main__":
    main()
