"""`python -m modelmill.gather`: can this Python use the metric plug-ins on stdin?

A conductor asks the environment of the report before anything runs.  stdin holds
`infer.metrics` as JSON, stdout what is wrong with its plug-ins.
"""

import sys

from pydantic import TypeAdapter

from modelmill.gather.plugins import check_plugins
from modelmill.spec.errors import Problem, SpecError
from modelmill.spec.infer import MetricsSpec

PROBLEMS = TypeAdapter(tuple[Problem, ...])


def main() -> int:
    """Write the problems; the exit code says whether there are any."""
    try:
        check_plugins(MetricsSpec.model_validate_json(sys.stdin.read()))
    except SpecError as error:
        sys.stdout.buffer.write(PROBLEMS.dump_json(error.problems))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
