"""A Runtime of Cloudera AI, with the gateway a site starts and a cell that runs a job's script."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Image, Images
from .test_stages import WORK

CDSW = 8536

IMAGES_OF = {
    "light-cml": ("light",),
    "finetune-cml": ("finetune", "merge"),
    "quantize-cml": ("quantize", "infer"),
}
"""By Runtime, the images whose work it does on a site."""

RUN_CELL = """
import json, sys, requests, websocket
url, code = sys.argv[1:]
kernel = requests.post(url + "/api/kernels", json={"name": "python3"}, timeout=120).json()["id"]
channels = url.replace("http", "ws", 1) + "/api/kernels/" + kernel + "/channels"
socket = websocket.create_connection(channels, timeout=120)
header = {"msg_id": "cell", "msg_type": "execute_request", "username": "", "session": "test"}
content = {"code": code, "silent": False, "allow_stdin": False}
socket.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "channel": "shell",
                        "content": content}))
printed, reply, is_idle = "", None, False
while reply is None or not is_idle:
    message = json.loads(socket.recv())
    if message["parent_header"].get("msg_id") != "cell":
        continue
    match message["msg_type"], message["content"]:
        case "stream", said:
            printed += said["text"]
        case "execute_reply", reply:
            pass
        case "status", said:
            is_idle = said["execution_state"] == "idle"
print(json.dumps({"printed": printed, "status": reply["status"], "error": reply.get("evalue", "")}))
"""

WHO = """
import getpass, json, os, pathlib, subprocess, sys
def named(python):
    program = "import sys; print(sys.prefix, 'Python %d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", program], capture_output=True, text=True).stdout.strip()
print(json.dumps({
    "uid": os.getuid(),
    "user": getpass.getuser(),
    "home": str(pathlib.Path.home()),
    "folder": os.getcwd(),
    "kernel": sys.prefix,
    "pythons": [named("python"), named("/usr/local/bin/python3")],
}))
"""


IMPORT = """
import os, subprocess
python = os.environ["MODELMILL_PYTHON"]
print(subprocess.check_output([python, "-c", "import {modules}; print('all there')"], text=True))
"""


@dataclass(frozen=True)
class Runtime(Image):
    """An image that runs as a site runs it: as its own user, in a project, with a network."""

    project: Path

    def _runtime_config(
        self, arguments: list[str], shown: Mapping[str, Path]
    ) -> Mapping[str, object]:
        config: dict[str, Any] = {**super()._runtime_config(arguments, shown)}
        config["process"]["user"] = {"uid": CDSW, "gid": CDSW}
        config["root"]["readonly"] = False
        home = {"destination": "/home/cdsw", "type": "bind", "source": str(self.project)}
        # A site mounts nothing at /scratch, so it is as the image has left it.
        kept = [each for each in config["mounts"] if each["destination"] != "/scratch"]
        config["mounts"] = [*kept, {**home, "options": ["rbind", "rw"]}]
        # Loopback: the gateway and its kernels speak through it.
        config["linux"]["namespaces"].remove({"type": "network"})
        return config


@dataclass(frozen=True)
class Gateway:
    """A kernel gateway in a Runtime, as a site would start it."""

    container: str
    url: str

    def run(self, code: str) -> dict[str, Any]:
        """Run a cell in a kernel of its own, and say what it printed and how it ended."""
        command = ["runc", "exec", self.container, "python", "-c", RUN_CELL, self.url, code]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        found: dict[str, Any] = json.loads(ended.stdout)
        return found


@pytest.fixture(scope="module", params=IMAGES_OF)
def runtime(
    images: Images, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Runtime:
    """Open a Runtime, in a project that has the scripts of jobs; CI builds the smallest alone."""
    if request.param != "light-cml" and not images.has(request.param):
        pytest.skip("make images-cml builds it")
    image = images.open(request.param)
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "examples" / "cml", project / "examples" / "cml")
    (project / ".jupyter").mkdir()
    (project / ".jupyter" / "jupyter_kernel_gateway_config.py").write_text("", encoding="utf-8")
    for path in (project, *project.rglob("*")):
        os.chown(path, CDSW, CDSW)
    return Runtime(image.name, image.root, image.description, image.bundles, project)


@pytest.fixture(scope="module")
def gateway(runtime: Runtime) -> Iterator[Gateway]:
    """Start the gateway by the command that the image tells the site."""
    variables = dict(each.split("=", 1) for each in runtime.config["Env"])
    command = runtime.command(*variables["ML_RUNTIME_JUPYTER_KERNEL_GATEWAY_CMD"].split())
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = ""
        for line in process.stderr:
            said += line
            if "available at http" in line:
                break
        assert process.poll() is None, said
        url = said.rpartition(" available at ")[2].strip().rstrip("/")
        try:
            yield Gateway(command[-1], url)
        finally:
            subprocess.run(["runc", "kill", command[-1], "KILL"], check=True)


def test_cell_that_runs_the_stage_script_reaches_the_stage(gateway: Gateway) -> None:
    """The script finds the packages of stages, and its exit code ends the cell."""
    ended = gateway.run("exec(open('examples/cml/stage.py').read())")
    assert ended["status"] == "error"
    assert ended["error"].endswith("returned non-zero exit status 64.")
    assert "MODELMILL_STAGE: not set" in ended["printed"]
    assert "Traceback" not in ended["printed"]


def test_cell_reaches_all_that_its_stages_import(gateway: Gateway, runtime: Runtime) -> None:
    """The Python that jobs start has the packages of every stage that a profile sends there."""
    modules = [name for image in IMAGES_OF[runtime.name] for name in WORK[image].split()]
    ended = gateway.run(IMPORT.format(modules=", ".join(modules)))
    assert (ended["status"], ended["printed"].split()[-1:]) == ("ok", ["there"]), ended


def test_kernel_is_the_python_that_the_label_names(gateway: Gateway, runtime: Runtime) -> None:
    """The user, home and Python of a session are those that the site expects."""
    label = runtime.config["Labels"]["com.cloudera.ml.runtime.kernel"]
    assert json.loads(gateway.run(WHO)["printed"]) == {
        "uid": CDSW,
        "user": "cdsw",
        "home": "/home/cdsw",
        "folder": "/home/cdsw",
        "kernel": "/usr/local",
        "pythons": [f"/usr/local {label}"] * 2,
    }


def test_kernel_does_not_have_the_packages_of_stages(gateway: Gateway) -> None:
    """Neither Python decides about the versions of the other; a cell that fails is noticed."""
    assert gateway.run("import pydantic")["error"] == "No module named 'pydantic'"


def test_stage_finds_its_packages_whatever_the_site_adds(runtime: Runtime) -> None:
    """A site sets PYTHONPATH for its own packages."""
    command = (
        "PYTHONPATH=/opt/added exec $MODELMILL_PYTHON -c 'import modelmill.conduct.in_project'"
    )
    ended = runtime.run("sh", "-c", command)
    assert ended.code == 0, ended.err
    assert runtime.run("modelmill", "version").code == 0


def test_user_of_sites_may_change_what_sites_change_and_no_stage(runtime: Runtime) -> None:
    """Client configuration goes to the one, and what runs a stage is the other."""
    changed = "touch /etc/krb5.conf /etc/alternatives/x /usr/share/java/x /opt/x && echo done"
    assert runtime.run("sh", "-c", changed).out == "done\n"
    ended = runtime.run("find", "/opt/modelmill", "-writable", "-not", "-type", "l")
    assert (ended.code, ended.out) == (0, "")
    assert [*(runtime.root / "etc/ssh").glob("ssh_host_*")] == []


def test_bill_of_materials_of_the_gateway_is_beside_its_lock(runtime: Runtime) -> None:
    """Two Pythons, two documents; the stage's own is that of its image."""
    folder = runtime.root / "opt/modelmill"
    bill = json.loads((folder / "gateway/sbom.cdx.json").read_text(encoding="utf-8"))
    assert "jupyter-kernel-gateway" in {each["name"] for each in bill["components"]}
    assert (folder / "sbom.cdx.json").exists()
