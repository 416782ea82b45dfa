"""Try from inside of a job of Cloudera AI what its stages will need: packages, store and hub.

The last words go to the store, because the platform tells of an end only whether it was a success.
"""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from modelmill.conduct.local import LIBRARIES, environment_for, interpreter, last_words
from modelmill.spec.errors import ModelmillError, Problem, SpecError
from modelmill.spec.names import (
    ENV_HOME,
    ENV_PROBE,
    ENV_STAGE,
    ENV_STORE,
    ENV_TERMINATION,
    ENVIRONMENT_OF,
    Kind,
    is_fetch,
    kind_of,
)
from modelmill.spec.records import Ending
from modelmill.store.address import open_store

LAST_WORDS_SECONDS = 60.0


def probe(environment: Mapping[str, str]) -> int:
    """Try what the stage that the environment names would need, and leave how it went.

    Raises:
        SpecError: the environment names none.
        ModelmillError: the store cannot be told.
    """
    required = (ENV_STORE, ENV_STAGE, ENV_PROBE)
    missing = [Problem(name, "not set") for name in required if not environment.get(name)]
    if missing:
        raise SpecError("environment", missing)
    home = Path(environment.get(ENV_HOME) or ".modelmill").resolve()
    try:
        ending = _try(kind_of(environment[ENV_STAGE]), home)
    except ModelmillError as error:
        ending = Ending(exit_code=error.exit_code, message=str(error))
    store = open_store(environment[ENV_STORE], retry_budget_seconds=LAST_WORDS_SECONDS)
    store.put(environment[ENV_PROBE], ending.model_dump_json().encode())
    return ending.exit_code


def _try(kind: Kind, home: Path) -> Ending:
    words = ("modelmill.store.probe",) if is_fetch(kind) else ("modelmill", "version")
    with tempfile.TemporaryDirectory(prefix="modelmill-") as folder:
        told = {**environment_for(kind), **LIBRARIES, ENV_TERMINATION: f"{folder}/termination"}
        python = interpreter(home, ENVIRONMENT_OF[kind])
        code = subprocess.run([str(python), "-m", *words], env=told, check=False).returncode
        return Ending(exit_code=code, message=last_words(Path(folder), code))
