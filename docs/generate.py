"""Write the documentation that follows from the code: schemas and the reference page.

    python -m docs.generate [FOLDER]

from the root of the checkout; FOLDER is where to write, `docs` when absent.  Nothing here
holds a fact of its own: the schemas are pydantic's, the reference is drawn from them, from
click's commands, from `spec/errors.py` and from `spec/names.py`.  Equal code gives equal
bytes, whatever the terminal and the environment.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from docs.reference import reference_page
from docs.schema import schema_text
from modelmill.report.compose import report_schema
from modelmill.spec.profile import Profile
from modelmill.spec.run import RunSpec

DOCS = Path(__file__).parent


def generated() -> Iterator[tuple[str, str]]:
    """Make every generated file: its name and its text."""
    run, profile = RunSpec.model_json_schema(), Profile.model_json_schema()
    schemas: Mapping[str, Mapping[str, JsonValue]] = {
        "run": run,
        "profile": profile,
        "report": report_schema(),
    }
    for name, schema in schemas.items():
        yield f"{name}.schema.json", schema_text(schema)
    yield "reference.md", reference_page(run, profile)


def main(folder: Path = DOCS) -> None:
    """Write every generated file below a folder."""
    for name, text in generated():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
