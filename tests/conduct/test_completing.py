"""A real bash completes what there is, and says nothing where there is nothing to ask."""

import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from modelmill.conduct.glance import Glance
from modelmill.store.artifact import list_artifacts
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.runs import read_run
from modelmill.store.s3 import Store

from ..workshop import Workshop
from .conftest import Preparer, publish

BIN = Path(sys.executable).parent
"""Where the command `modelmill` is."""

COMPLETE = """\
eval "$SCRIPT" || exit
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_modelmill_completion modelmill
printf '%s\\n' "${COMPREPLY[@]}"
"""

PATIENT = {"MODELMILL_COMPLETION_SECONDS": "120"}
"""What is found is under test, not how soon on a loaded machine."""


@cache
def script(shell: str) -> str:
    """Print the script for a shell."""
    command = [BIN / "modelmill", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def bash(folder: Path, *words: str, **environment: str) -> list[str]:
    """Ask bash for what the last word can become; nothing may be said beside it."""
    path = f"{BIN}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE, "bash", *words],
        cwd=folder,
        env={**os.environ, "PATH": path, "SCRIPT": script("bash"), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == ""
    return ended.stdout.split()


@pytest.fixture(scope="module")
def told(prepared: Preparer) -> str:
    """Prepare a run of which one stage is committed."""
    given = prepared("told-to-bash")
    stage = given.plan.stage("fetch-model")
    publish(given, stage.name, stage.key, "a", given.run)
    return given.run


def test_words_that_need_no_store(tmp_path: Path) -> None:
    """Commands, choices, options and keys come from the program itself."""
    assert bash(tmp_path, "modelmill", "expl") == ["explain"]
    assert bash(tmp_path, "modelmill", "artifacts", "") == ["get", "ls", "rm", "verify"]
    assert bash(tmp_path, "modelmill", "init", "ch") == ["chat"]
    assert bash(tmp_path, "modelmill", "list", "-o", "p") == ["plain"]
    assert bash(tmp_path, "modelmill", "submit", "--take") == ["--take-over"]
    assert bash(tmp_path, "modelmill", "completion", "") == ["bash", "zsh", "fish"]
    assert bash(tmp_path, "modelmill", "explain", "quan") == ["quantize"]
    assert "finetune.lora_alpha" in bash(tmp_path, "modelmill", "explain", "finetune.lora")
    assert list(tmp_path.iterdir()) == []


def test_names_that_the_store_knows(workshop: Workshop, store: Store, told: str) -> None:
    """Runs, stages of the run that is named, and keys; of a store that runs already."""

    def complete(*words: str) -> list[str]:
        return bash(workshop.folder, "modelmill", *words, **PATIENT)

    record = read_run(store, told)
    assert record is not None
    key = record.keys["fetch-model"]
    assert complete("status", "told") == [told]
    assert sorted(complete("logs", told, "fetch-")) == ["fetch-data", "fetch-model", "fetch-test"]
    assert complete("resume", told, "--again", "rep") == ["report"]
    assert complete("artifacts", "verify", key[:6]) == [key[:12]]
    assert complete("artifacts", "rm", key[:20]) == [key]


def test_glance_sees_what_is_there(workshop: Workshop, store: Store, told: str) -> None:
    """The store of a folder, or one that is named."""
    for home, url in ((workshop.home, None), (Path("nowhere"), EmbeddedStore.url)):
        glance = Glance(home, url, patience_seconds=120)
        assert told in glance.runs()
        assert glance.stages(told)[-1] == "report"
        assert set(glance.artifacts()) == set(list_artifacts(store))
        assert glance.stages("no-such-run") == ()


def test_embedded_store_is_never_started(tmp_path: Path) -> None:
    """Pressing Tab leaves a new folder as it was, and a store that is off stays off."""
    assert bash(tmp_path, "modelmill", "status", "") == []
    assert list(tmp_path.iterdir()) == []
    with EmbeddedStore(tmp_path / ".modelmill" / "store"):
        pass
    before = sorted(tmp_path.rglob("*.lock"))
    assert bash(tmp_path, "modelmill", "status", "", **PATIENT) == []
    assert Glance(tmp_path / ".modelmill", None).runs() == ()
    assert sorted(tmp_path.rglob("*.lock")) == before


@pytest.fixture
def mute() -> Iterator[str]:
    """Listen, and never answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_store_that_does_not_answer_is_nothing(tmp_path: Path, mute: str) -> None:
    """Neither silence nor a refusal, an unknown host or a wrong address is said, or waited out."""
    aws = {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for endpoint in (mute, "http://127.0.0.1:1", "http://store.invalid"):
        environment = {**aws, "AWS_ENDPOINT_URL": endpoint, "AWS_ENDPOINT_URL_S3": endpoint}
        words = ("modelmill", "status", "--store", "s3://bucket/x", "")
        assert bash(tmp_path, *words, **environment) == []
    assert bash(tmp_path, "modelmill", "status", "--store", "bucket", "") == []


def test_tab_in_an_interactive_bash(tmp_path: Path) -> None:
    """The script is read by bash itself, and Tab finishes the word on the line."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, b'eval "$(modelmill completion bash)"; echo re""ady\n')
    _read_until(ours, b"\nready")
    os.write(ours, b"modelmill artifacts veri\t")
    _read_until(ours, b"artifacts verify ")
    # The line is cleared, not run.
    os.write(ours, b"\x15exit\n")
    assert process.wait() == 0
    os.close(ours)


def _read_until(terminal: int, words: bytes) -> None:
    shown = b""
    while words not in shown.replace(b"\r", b""):
        shown += os.read(terminal, 4096)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_for_the_shell_that_was_asked_for(shell: str) -> None:
    """Each asks the program back in its own way."""
    assert f"_MODELMILL_COMPLETE={shell}_complete" in script(shell)
    assert "modelmill" in script(shell)
