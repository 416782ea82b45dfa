"""What the conductor's container starts."""

import sys

from modelmill.conduct.in_cluster import main

if __name__ == "__main__":
    sys.exit(main())
