"""The built images, run as a restricted pod runs them: any user, no rights, a read-only root.

Needs root, buildah with the images that `make images` has built, and runc.
"""

import json
import re
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BUILT = ("light", "finetune", "merge", "quantize", "infer")
"""infer-vllm is not built in CI."""
ANY_USER = 1000660000
"""OpenShift gives each namespace a range of its own; no passwd file knows them."""
NOTHING: Mapping[str, Path] = {}


def parent(image: str) -> str:
    """Name the image that an image of ours starts from, or nothing for base."""
    text = (ROOT / "images" / image / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"^FROM ([a-z]+)$", text, re.MULTILINE)
    return found[1] if found else ""


def descendants(image: str) -> list[str]:
    """List the built images that inherit an image's promises, and so its tests."""
    return [name for name in BUILT if image in _line(name)]


def _line(image: str) -> list[str]:
    return [image, *_line(parent(image))] if image else []


@dataclass(frozen=True)
class Ended:
    """What a container left behind."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Image:
    """A built image and its unpacked root."""

    name: str
    root: Path
    description: dict[str, Any]
    """As buildah inspects it."""
    bundles: Path

    @property
    def config(self) -> dict[str, Any]:
        """Read user, environment, entry point and labels."""
        found: dict[str, Any] = self.description["OCIv1"]["config"]
        return found

    @property
    def layers(self) -> list[str]:
        """List the digests of the layers, the lowest first."""
        found: list[str] = self.description["OCIv1"]["rootfs"]["diff_ids"]
        return found

    def command(self, *arguments: str, shown: Mapping[str, Path] = NOTHING) -> list[str]:
        """Write the command line that runs arguments after the image's entry point.

        Args:
            arguments: of the container.
            shown: what of this machine can be read there, by its place below `/scratch`.
        """
        bundle = self.bundles / uuid.uuid4().hex
        bundle.mkdir()
        config = self._runtime_config(list(arguments), shown)
        (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return ["runc", "run", "--bundle", str(bundle), bundle.name]

    def run(self, *arguments: str, shown: Mapping[str, Path] = NOTHING) -> Ended:
        """Run arguments after the image's entry point, to the end."""
        command = self.command(*arguments, shown=shown)
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def python(self, program: str) -> Ended:
        """Run a Python program."""
        return self.run("python", "-c", program)

    def _runtime_config(
        self, arguments: list[str], shown: Mapping[str, Path]
    ) -> Mapping[str, object]:
        nothing: list[str] = []
        kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": ANY_USER, "gid": 0},
                "args": [*self.config.get("Entrypoint", ()), *arguments],
                "env": self.config["Env"],
                "cwd": self.config["WorkingDir"],
                "capabilities": dict.fromkeys(kinds, nothing),
                "noNewPrivileges": True,
            },
            "root": {"path": str(self.root), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {
                    "destination": "/dev",
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["nosuid", "mode=755", "size=65536k"],
                },
                _scratch("/dev/shm"),  # noqa: S108 - a mount point of the container
                _scratch("/scratch"),
                *(_read_only(f"/scratch/{place}", path) for place, path in shown.items()),
            ],
            # A network namespace without an interface: whoever asks for one, fails.
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "mount", "network")]
            },
        }


def _scratch(destination: str) -> Mapping[str, object]:
    return {
        "destination": destination,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "nodev", "mode=777", "size=2g"],
    }


def _read_only(destination: str, path: Path) -> Mapping[str, object]:
    return {
        "destination": destination,
        "type": "bind",
        "source": str(path),
        "options": ["rbind", "ro"],
    }


def buildah(*arguments: str) -> str:
    """Run buildah and return what it prints."""
    command = ["buildah", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass
class Images:
    """The images of one repository, each unpacked when it is first asked for."""

    repository: str
    version: str
    bundles: Path
    _opened: dict[str, tuple[str, Image]]

    def open(self, name: str) -> Image:
        """Unpack an image."""
        if name not in self._opened:
            full = f"{self.repository}-{name}:{self.version}"
            container = buildah("from", "--pull-never", full)
            description = json.loads(buildah("inspect", "--type", "image", full))
            root = Path(buildah("mount", container))
            self._opened[name] = (container, Image(name, root, description, self.bundles))
        return self._opened[name][1]

    def has(self, name: str) -> bool:
        """Tell whether an image has been built; some are for whoever wants them."""
        full = f"{self.repository}-{name}:{self.version}"
        return bool(buildah("images", "--quiet", "--filter", f"reference={full}"))

    def close(self) -> None:
        """Remove what was unpacked; the images stay."""
        for container, _ in self._opened.values():
            buildah("umount", container)
            buildah("rm", container)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Find the images of this checkout's version."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.*)"$', text, re.MULTILINE)
    assert version
    images = Images("localhost/modelmill", version[1], tmp_path_factory.mktemp("bundles"), {})
    try:
        yield images
    finally:
        images.close()


@pytest.fixture
def image(images: Images, request: pytest.FixtureRequest) -> Image:
    """Open the image a test is parametrized with."""
    return images.open(request.param)
