import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from modelmill.cli.main import cli
from modelmill.spec.errors import CLASSES, SpecError
from modelmill.spec.loading import load_run, parse_yaml
from modelmill.spec.run import RunSpec

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
EXAMPLES = sorted((ROOT / "examples").glob("*/run.yaml"))
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("k8s/*.md"), *ROOT.glob("helm/*/*.md")]
)


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """List every command below a group, by what a user types."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(cli, "modelmill"))


def generate(folder: Path, **environment: str) -> dict[str, str]:
    """Run the generator as `make generate` does, into another folder."""
    subprocess.run(
        [sys.executable, "-m", "docs.generate", str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment},
        check=True,
    )
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


def tracked_files() -> list[Path]:
    """List what is committed, and what would be with the next commit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def forbidden_in(text: str) -> list[str]:
    """Find hosts of package registries, and folders of the machine a file was written on."""
    registries = "|".join(["py" + "pi", "python" + "hosted", "npm" + "js", "crates", "ma" + "ven"])
    hosts = re.findall(rf"://[a-z0-9.-]*(?:{registries}|golang|debian)[a-z0-9.-]*", text)
    # The start of a path, not `.../src/` inside one.
    folder = re.escape(str(ROOT))
    return [*hosts, *re.findall(rf"(?<![\w.)}}\]]){folder}[\w./-]*", text)]


@pytest.fixture(scope="module")
def reference() -> str:
    """Read the page."""
    return (DOCS / "reference.md").read_text(encoding="utf-8")


def test_generated_files_are_what_the_code_says(tmp_path: Path) -> None:
    """Generating again, in another terminal and environment, changes no byte."""
    again = generate(tmp_path, COLUMNS="40", MODELMILL_STORE="s3://elsewhere", PYTHONHASHSEED="7")
    assert {"docs/reference.md", "helm/modelmill/values.yaml", "k8s/jobs/merge.yaml"} <= set(again)
    for name, text in again.items():
        committed = (ROOT / name).read_text(encoding="utf-8")
        assert committed == text, f"{name} is stale; write it anew with `make generate`"


def test_every_example_job_is_generated(tmp_path: Path) -> None:
    """A stage that is gone leaves no example behind."""
    jobs = {name for name in generate(tmp_path) if name.startswith("k8s/jobs/")}
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "k8s/jobs").iterdir()}
    assert found == {*jobs, "k8s/jobs/profile.yaml"}


@pytest.mark.parametrize("path", COMMANDS)
def test_command_has_help_and_is_in_the_reference(path: str, reference: str) -> None:
    """A command that nobody explains cannot be shipped."""
    command = COMMANDS[path]
    assert command.help
    assert f"### `{path}`\n" in reference
    _, _, text = reference.partition(f"### `{path}`\n")
    for option in (each for each in command.params if isinstance(each, click.Option)):
        assert option.help, f"{path} {option.name}"
        assert option.opts[-1] in text.partition("\n### ")[0]


def test_exit_codes_are_all_in_the_reference(reference: str) -> None:
    """Every class of the table of errors has its row."""
    for error in CLASSES:
        assert f"| {error.exit_code} | {error.__name__} |" in reference


def test_schema_has_every_key_that_the_model_accepts(reference: str) -> None:
    """The top of the schema, the model and the reference name the same keys."""
    schema = json.loads((DOCS / "run.schema.json").read_text(encoding="utf-8"))
    assert set(schema["properties"]) == set(RunSpec.model_fields)
    for name in RunSpec.model_fields:
        assert re.search(rf"^(### |\| `){name}\b", reference, re.MULTILINE)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_example_loads(path: Path) -> None:
    """What we show is something modelmill can do."""
    assert load_run(path).models()


def test_example_with_a_misspelt_key_does_not_load() -> None:
    """The check of the examples can fail."""
    with pytest.raises(SpecError, match="lora_alfa: unknown key"):
        load_run(EXAMPLES[0], ["finetune.lora_alfa=1"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_links_to_files_that_exist(page: Path) -> None:
    """No link inside the documentation is dead."""
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_shows_runs_that_load(page: Path) -> None:
    """A whole run in a page is one that modelmill accepts."""
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        data, _ = parse_yaml(block, page.name)
        if isinstance(data, dict) and {"model", "data"} <= data.keys():
            RunSpec.model_validate(data)


def test_no_file_names_a_registry_or_this_machine() -> None:
    """The project can be cloned anywhere and installed from any index."""
    found = {}
    for path in tracked_files():
        text = path.read_text(encoding="utf-8", errors="ignore")
        if wrong := forbidden_in(text):
            found[str(path.relative_to(ROOT))] = wrong
    assert found == {}


@pytest.mark.parametrize(
    "text", ["index at https://" + "py" + "pi.org/simple", f"see {ROOT}/src", f"{ROOT}"]
)
def test_search_for_registries_finds_one(text: str) -> None:
    """The search above can fail."""
    assert forbidden_in(text)
