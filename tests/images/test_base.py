"""What base promises, checked in every image that is made from it."""

import json
import re
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT, Image, Images, descendants

every_image = pytest.mark.parametrize("image", descendants("base"), indirect=True)

WHO = """
import getpass, json, os, pathlib, tempfile
print(json.dumps({
    "uid": os.getuid(),
    "user": getpass.getuser(),
    "home": str(pathlib.Path.home()),
    "scratch": tempfile.gettempdir(),
    "first": pathlib.Path("/proc/1/comm").read_text().strip(),
}))
"""


@every_image
def test_command_answers_for_a_user_nobody_knows(image: Image) -> None:
    """The package is whole, with its metadata."""
    ended = image.run("modelmill", "version")
    assert (ended.code, ended.err) == (0, "")
    assert re.match(r"\d+\.\d+\.\d+", ended.out)


@every_image
def test_stage_without_orders_says_what_is_missing(image: Image) -> None:
    """The image's own command is the stage entry point, and its exit code comes through."""
    ended = image.run(*image.config["Cmd"])
    assert ended.code == 64
    assert "MODELMILL_STAGE: not set" in ended.err
    assert "Traceback" not in ended.err


@every_image
def test_user_without_a_passwd_entry_has_name_home_and_scratch(image: Image) -> None:
    """All of it without a line in a passwd file, and all below the one writable folder."""
    ended = image.python(WHO)
    assert json.loads(ended.out) == {
        "uid": 1000660000,
        "user": "modelmill",
        "home": "/scratch",
        "scratch": "/scratch",
        "first": "tini",
    }


@every_image
def test_root_is_not_for_writing(image: Image) -> None:
    """The runtime forbids it, and the permissions would as well."""
    ended = image.python("open('/opt/modelmill/x', 'w')")
    assert ended.code == 1
    assert "Read-only file system" in ended.err
    code = image.root / "opt/modelmill"
    assert [path for path in code.rglob("*") if _writable_by_others(path)] == []


@every_image
def test_scratch_is_for_any_user_of_group_zero(image: Image) -> None:
    """Without a volume, as with `docker run`, the folder itself must do."""
    mode = (image.root / "scratch").stat()
    assert (mode.st_gid, stat.S_IMODE(mode.st_mode)) == (0, 0o775)


@every_image
def test_every_cache_lies_in_the_writable_folder(image: Image) -> None:
    """No library finds a place of its own outside."""
    environment = dict(each.split("=", 1) for each in image.config["Env"])
    places = {
        name: value
        for name, value in environment.items()
        if name == "HOME" or name.endswith(("_HOME", "_DIR", "_ROOT", "TMPDIR", "CACHE_PATH"))
    }
    assert {"HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME"} <= set(places)
    assert [name for name, value in places.items() if not value.startswith("/scratch")] == []


@every_image
def test_nothing_asks_for_a_network_or_calls_home(image: Image) -> None:
    """Only fetch goes online, and its Job says so."""
    assert {
        "HF_HUB_OFFLINE=1",
        "HF_HUB_DISABLE_TELEMETRY=1",
        "DO_NOT_TRACK=1",
    } <= set(image.config["Env"])


@every_image
def test_sigterm_reaches_the_stage(image: Image) -> None:
    """A stage has its grace period to save what can be resumed."""
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    command = image.command("python", "-c", program)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        subprocess.run(["runc", "kill", command[-1], signal.SIGTERM.name], check=True)
        assert process.wait() == 75


@every_image
def test_labels_say_what_it_is(image: Image) -> None:
    """The OCI's own names, with this checkout's version."""
    labels = image.config["Labels"]
    version = re.search(r'^version = "(.*)"$', _text(ROOT / "pyproject.toml"), re.MULTILINE)
    assert version
    assert labels["org.opencontainers.image.title"] == f"modelmill {image.name}"
    assert labels["org.opencontainers.image.version"] == version[1]
    assert re.fullmatch(
        r"[0-9a-f]{40}(-dirty)?|unknown", labels["org.opencontainers.image.revision"]
    )


@every_image
def test_build_left_nothing_behind(image: Image) -> None:
    """No secret, no address, no cache, no build tool, no certificate but the distribution's."""
    for folder in ("run/secrets", "var/cache/uv", "root/.cache", "opt/builder"):
        assert [*(image.root / folder).glob("*")] == []
    for name in ("pip.conf", "uv.toml", ".netrc"):
        assert [*(image.root / "etc").rglob(name), *(image.root / "root").glob(f"**/{name}")] == []
    assert not (image.root / "usr/bin/gcc").exists()
    assert not (image.root / "opt/modelmill/venv/bin/pip").exists()
    assert "://" not in json.dumps(image.description["OCIv1"]["config"])
    assert _certificates(image.root) == _certificates_of_the_distribution(image.root)


@every_image
def test_bill_of_materials_is_what_is_installed(image: Image) -> None:
    """The document in the image and the metadata of its Python name the same packages."""
    bill = json.loads(_text(image.root / "opt/modelmill/sbom.cdx.json"))
    listed = {(each["name"], each["version"]) for each in bill["components"]}
    ended = image.python(
        "import importlib.metadata as m, json, re\n"
        "print(json.dumps([(re.sub('[-_.]+', '-', d.name).lower(), d.version)"
        " for d in m.distributions()]))"
    )
    installed = {(name, version) for name, version in json.loads(ended.out)}
    assert {name for name, _ in installed - listed} == {"modelmill"}
    assert listed <= installed


@every_image
def test_source_comes_with_its_bytecode(image: Image) -> None:
    """Nobody can write it later."""
    package = image.root / "opt/modelmill/package/modelmill"
    sources = list(package.rglob("*.py"))
    assert sources
    assert [
        path for path in sources if not [*path.parent.glob(f"__pycache__/{path.stem}.*.pyc")]
    ] == []


@every_image
def test_layers_of_base_are_shared(image: Image, images: Images) -> None:
    """A node pulls them once."""
    below = images.open("base").layers
    assert image.layers[: len(below)] == below


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _writable_by_others(path: Path) -> bool:
    return not path.is_symlink() and bool(path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _certificates(root: Path) -> int:
    return _text(root / "etc/ssl/certs/ca-certificates.crt").count("BEGIN CERTIFICATE")


def _certificates_of_the_distribution(root: Path) -> int:
    lines = _text(root / "etc/ca-certificates.conf").splitlines()
    return len([line for line in lines if line and line[0] not in "#!"])
