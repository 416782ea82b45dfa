"""The Dockerfiles: what must stand in each, and that both build tools agree on the family."""

import re

import pytest

from .locks import IMAGES, ON_TORCH

DOCKERFILES = {path.parent.name: path for path in sorted(IMAGES.glob("*/Dockerfile"))}
LEAVES = ("light", "infer-vllm", *ON_TORCH)
ON_PODS = tuple(name for name in DOCKERFILES if name != "cml")
"""What restricted pods run; what a site of Cloudera AI runs is in `test_runtimes.py`."""


def text_of(image: str) -> str:
    """Read a Dockerfile without comments, each instruction on one line."""
    lines = DOCKERFILES[image].read_text(encoding="utf-8").splitlines()
    kept = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    return re.sub(r"\s*\\\n\s*", " ", kept)


def instructions(image: str, name: str) -> list[str]:
    """List the arguments of every instruction of one kind."""
    return re.findall(rf"^{name} (.*)$", text_of(image), re.MULTILINE)


def made_from(image: str) -> set[str]:
    """Name the sibling images a Dockerfile uses."""
    return set(re.findall(r"(?:^FROM |[-,]from=)([a-z-]+)\b", text_of(image), re.MULTILINE))


def baked() -> dict[str, set[str]]:
    """Name the sibling images that each target of the bake file is given."""
    found: dict[str, set[str]] = {}
    text = (IMAGES / "docker-bake.hcl").read_text(encoding="utf-8")
    for block in re.split(r'^target (?=")', text, flags=re.MULTILINE)[1:]:
        matrix = re.search(r"matrix\s*=\s*{ leaf = \[(.*?)\] }", block)
        own = block.partition(" ")[0]
        for name in re.findall(r'"([a-z-]+)"', matrix[1] if matrix else own):
            pairs = re.findall(r'([a-z]+) = "target:(?:\${)?([a-z]+)}?"', block)
            assert all(key == value for key, value in pairs), block
            found[name] = {value for _, value in pairs}
    return found


@pytest.mark.parametrize("image", ON_PODS)
def test_image_ends_without_rights(image: str) -> None:
    """The last user is a number, as runAsNonRoot needs to see, in the group of arbitrary users."""
    assert instructions(image, "USER")[-1] == "10001:0"


@pytest.mark.parametrize("image", DOCKERFILES)
def test_nothing_comes_from_an_address(image: str) -> None:
    """Downloads happen through locks, and the index is the site's."""
    assert instructions(image, "ADD") == []
    assert re.findall(r"\w+://|--index-url|--extra-index-url", text_of(image)) == []


@pytest.mark.parametrize("image", DOCKERFILES)
def test_step_that_fails_ends_the_build(image: str) -> None:
    """OCI images have no SHELL: buildah ignores it, and with it the `-e` it might ask for."""
    assert instructions(image, "SHELL") == []
    steps = [re.sub(r"--mount=\S+ ", "", step) for step in instructions(image, "RUN")]
    assert [step for step in steps if ";" in step and not step.startswith("set -eu; ")] == []


@pytest.mark.parametrize("image", DOCKERFILES)
def test_packages_are_installed_by_hash(image: str) -> None:
    """No pip or uv call gets its packages from anything but a lock or a wheel made from one."""
    for call in re.findall(r"(?:pip|uv pip) (?:install|wheel) [^;]*", text_of(image)):
        assert "--require-hashes" in call or "--offline" in call


@pytest.mark.parametrize("image", DOCKERFILES)
def test_secrets_and_caches_are_mounts(image: str) -> None:
    """What a mount brings is in no layer; what an argument brings is in the history."""
    known = {"BASE_IMAGE", "VERSION", "REVISION", "STAGE", "PYTHON", "MAINTENANCE"}
    assert set(re.findall(r"ARG (\w+)", text_of(image))) <= known
    for copied in instructions(image, "COPY"):
        assert not re.search(r"\.(pem|crt|key|toml\b(?<!pyproject\.toml))", copied)


def test_only_base_starts_from_elsewhere_and_by_digest() -> None:
    """One image decides what lies below all of them, and the default never moves."""
    outside = {name for name in DOCKERFILES if "${" in instructions(name, "FROM")[0]}
    assert outside == {"base"}
    (default,) = (each for each in instructions("base", "ARG") if each.startswith("BASE_IMAGE="))
    assert re.fullmatch(r"BASE_IMAGE=docker\.io/nvidia/cuda:[\w.-]+@sha256:[0-9a-f]{64}", default)


def test_init_is_first_and_no_shell_stands_between() -> None:
    """SIGTERM reaches the stage, whose children are reaped."""
    assert instructions("base", "ENTRYPOINT") == ['["/usr/bin/tini", "--"]']
    assert [name for name in ON_PODS if name != "base" and instructions(name, "ENTRYPOINT")] == []


@pytest.mark.parametrize("image", LEAVES)
def test_own_source_is_the_last_layer(image: str) -> None:
    """After a change of the source nothing is installed anew."""
    layers = re.findall(r"^(RUN|COPY) (.*)$", text_of(image), re.MULTILINE)
    assert layers[-1] == ("COPY", "--from=modelmill /opt/modelmill/package /opt/modelmill/package")


@pytest.mark.parametrize("image", LEAVES)
def test_image_says_what_it_is(image: str) -> None:
    """Labels of the OCI's own names."""
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", text_of(image)))
    assert labels == {"title", "description", "version", "revision"}
    assert f'title="modelmill {image}"' in text_of(image)


@pytest.mark.parametrize("image", ON_TORCH)
def test_image_of_a_model_stage_stands_on_torch(image: str) -> None:
    """The gigabytes are in one layer."""
    assert instructions(image, "FROM") == ["torch"]


def test_bake_and_dockerfiles_name_the_same_family() -> None:
    """What buildah reads from the Dockerfiles, buildx is told."""
    assert {name: baked()[name] for name in DOCKERFILES} == {
        name: made_from(name) for name in DOCKERFILES
    }
