"""`python -m modelmill.stages`: the entrypoint of every stage."""

import sys

from modelmill.stages.entrypoint import main

sys.exit(main())
