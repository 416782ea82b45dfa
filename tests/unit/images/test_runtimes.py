"""The Dockerfile of the Runtimes: what a site of Cloudera AI reads off an image and asks of it."""

import re
import shlex
from string import Template

from modelmill.spec.names import ENVIRONMENT_OF

from .locks import IMAGES, ROOT, lock_of
from .test_dockerfiles import instructions, text_of

PREFIX = "com.cloudera.ml.runtime."
ARGUMENTS = {
    "STAGE": "quantize",
    "PYTHON": "3.12",
    "VERSION": "1.2.3",
    "MAINTENANCE": "1",
    "REVISION": "abc",
}
OF_ENVIRONMENT = {"light": "light", "train": "finetune", "quantize": "quantize"}
"""Whose image has the packages of an environment: the lock it is made from locally."""


def settings(name: str, known: dict[str, str]) -> dict[str, str]:
    """Read what all instructions of a kind set, with what is known filled in."""
    words = [word for each in instructions("cml", name) for word in shlex.split(each)]
    pairs = (word.partition("=") for word in words)
    return {key: Template(value).substitute(known) for key, _, value in pairs}


ENVIRONMENT = settings("ENV", ARGUMENTS)
LABELS = {
    key.removeprefix(PREFIX): value
    for key, value in settings("LABEL", {**ARGUMENTS, **ENVIRONMENT}).items()
    if key.startswith(PREFIX)
}


def test_labels_are_those_that_the_catalogue_reads() -> None:
    """All that custom Runtimes are asked for; the build number is Cloudera's own."""
    assert LABELS == {
        "runtime-metadata-version": "2",
        "editor": "PBJ Workbench",
        "edition": "modelmill quantize",
        "description": "Stages of modelmill that run in the environment of quantize",
        "kernel": "Python 3.12",
        "short-version": "1.2.3",
        "maintenance-version": "1",
        "full-version": "1.2.3.1",
        "git-hash": "abc",
    }


def test_session_is_told_what_the_catalogue_shows() -> None:
    """Each label has its variable, of the same value."""
    told = {"ML_RUNTIME_METADATA_VERSION": LABELS["runtime-metadata-version"]} | {
        f"ML_RUNTIME_{name.upper().replace('-', '_')}": value
        for name, value in LABELS.items()
        if name != "runtime-metadata-version"
    }
    assert told.items() <= ENVIRONMENT.items()


def test_runtimes_of_two_stages_are_two_editions() -> None:
    """A site takes no second Runtime with the same editor, edition, kernel and version."""
    other = settings("ENV", {**ARGUMENTS, "STAGE": "light"})
    assert other["ML_RUNTIME_EDITION"] == "modelmill light"
    assert other["ML_RUNTIME_EDITION"] != ENVIRONMENT["ML_RUNTIME_EDITION"]


def test_runtime_ends_as_the_user_of_sites() -> None:
    """By number and name; his home is where a site mounts the project."""
    assert instructions("cml", "USER")[-1] == "8536:8536"
    assert re.search(r"useradd --uid 8536 --gid 8536 .*\bcdsw\b", text_of("cml"))
    assert (ENVIRONMENT["HOME"], ENVIRONMENT["USER"]) == ("/home/cdsw", "cdsw")
    assert instructions("cml", "WORKDIR") == ["/home/cdsw"]
    assert instructions("cml", "ENTRYPOINT") == ["[]"]


def test_kernel_has_a_python_of_its_own() -> None:
    """The site finds its Python by PATH, and jobs that of the stages by a variable."""
    assert ENVIRONMENT["PATH"].split(":")[:2] == ["/usr/local/sbin", "/usr/local/bin"]
    assert ENVIRONMENT["PYTHONPATH"] == ""
    assert ENVIRONMENT["MODELMILL_PYTHON"] == "/opt/modelmill/venv/bin/python"
    assert ENVIRONMENT["ML_RUNTIME_JUPYTER_KERNEL_NAME"] == "python3"
    assert ENVIRONMENT["ML_RUNTIME_JUPYTER_KERNEL_GATEWAY_CMD"].startswith("/usr/local/bin/jupyter")
    pins = {pin.line.partition(" ")[0] for pin in lock_of("cml").values()}
    assert "jupyter-kernel-gateway==2.5.2" in pins  # the one that the documentation names


def test_fetch_may_go_online_in_a_runtime() -> None:
    """No Job sets it there: whoever starts another stage does."""
    assert ENVIRONMENT["HF_HUB_OFFLINE"] == "0"


def test_every_environment_has_a_runtime() -> None:
    """What a profile can name is what is built, by either tool."""
    assert set(OF_ENVIRONMENT) == set(ENVIRONMENT_OF.values())
    wanted = [f"{image}-cml" for image in OF_ENVIRONMENT.values()]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"images/build.sh {' '.join(wanted)}\n" in makefile
    bake = (IMAGES / "docker-bake.hcl").read_text(encoding="utf-8")
    (runtimes,) = re.findall(r'group "runtimes" {\n  targets = \[(.*)\]', bake)
    assert re.findall(r'"([a-z-]+)"', runtimes) == wanted
