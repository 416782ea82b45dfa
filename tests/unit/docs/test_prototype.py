"""The repository is a prototype (AMP) of Cloudera AI: its metadata hold what is documented.

The fields are those of docs.cloudera.com, "AMP Project Specification", version 1.0.
"""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from modelmill.spec.loading import load_profile, parse_yaml
from modelmill.spec.profile import check_project

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "examples" / "cml"


class Documented(BaseModel):
    """Closed, as a page is."""

    model_config = ConfigDict(extra="forbid")


class Variable(Documented):
    """An environment variable of the project."""

    default: str = ""
    description: str = ""
    required: bool = False


class Runtime(Documented):
    """What the prototype runs in."""

    editor: str
    kernel: str
    edition: str
    version: str = ""
    addons: list[str] = []


class CreateJob(Documented):
    """A task that makes a job."""

    type: Literal["create_job"]
    name: Annotated[str, StringConstraints(max_length=200)]
    entity_label: Annotated[str, StringConstraints(pattern=r"^[a-z][-_a-z0-9]*$", max_length=200)]
    script: str
    short_summary: str = ""
    long_summary: str = ""
    arguments: str = ""
    kernel: str = ""
    cpu: float = 1
    memory: float = 1
    gpu: int = 0
    timeout: int = 0
    environment: dict[str, str] = {}


class RunJob(Documented):
    """A task that runs it."""

    type: Literal["run_job"]
    entity_label: str
    short_summary: str = ""
    long_summary: str = ""


class Prototype(Documented):
    """The file `.project-metadata.yaml`."""

    name: Annotated[str, StringConstraints(max_length=200)]
    description: Annotated[str, StringConstraints(max_length=2048)]
    author: Annotated[str, StringConstraints(max_length=64)]
    date: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d$")]
    specification_version: float
    prototype_version: float
    shared_memory_limit: float = 0.0625
    environment_variables: dict[str, Variable] = {}
    runtimes: list[Runtime] = []
    tasks: list[Annotated[CreateJob | RunJob, Field(discriminator="type")]] = []


def metadata() -> dict[str, object]:
    """Read the file."""
    text = (ROOT / ".project-metadata.yaml").read_text(encoding="utf-8")
    document, _ = parse_yaml(text, ".project-metadata.yaml")
    assert isinstance(document, dict)
    return document


def test_prototype_has_the_documented_fields() -> None:
    """Enough shared memory for data loaders, scripts that are there, and no secret as a default."""
    found = Prototype.model_validate(metadata())
    assert found.shared_memory_limit >= 8
    assert all(variable.default == "" for variable in found.environment_variables.values())
    made = {task.entity_label for task in found.tasks if isinstance(task, CreateJob)}
    for task in found.tasks:
        assert task.entity_label in made
        assert isinstance(task, RunJob) or (ROOT / task.script).is_file()


def test_prototype_with_another_field_is_noticed() -> None:
    """The check fires."""
    with pytest.raises(ValidationError):
        Prototype.model_validate({**metadata(), "entrypoint": "stage.py"})


@pytest.mark.parametrize("name", ["stage.py", "conduct.py"])
def test_script_of_a_job_says_one_thing(name: str) -> None:
    """It starts one process, and everything else is in the environment."""
    lines = (SCRIPTS / name).read_text(encoding="utf-8").splitlines()
    code = [line for line in lines[1:] if line and not line.startswith("import")]
    assert len(code) <= 3
    assert "modelmill.conduct.in_project" in code[-1]


def test_profile_of_the_example_is_one_for_projects() -> None:
    """Every key is known, and what is required is there."""
    check_project(load_profile(SCRIPTS / "profile.yaml"), "profile.yaml")
