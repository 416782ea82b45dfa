"""The bill of materials: what is installed, with what the lock says about it."""

import json
import runpy

import pytest

from .locks import IMAGES

SBOM = runpy.run_path(str(IMAGES / "builder" / "sbom.py"))

LOCK = f"""\
# made by a machine
boto3==1.44.5 \\
    --hash=sha256:{"a" * 64} \\
    --hash=sha256:{"b" * 64}
    # via modelmill
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:{"c" * 64}
"""
BOTO3 = ("boto3", "1.44.5")


def test_bill_names_what_is_installed_with_its_accepted_files() -> None:
    """A package is named as scanners look it up, with the hashes of the lock."""
    (component,) = json.loads(SBOM["document"]([BOTO3], SBOM["read_lock"](LOCK)))["components"]
    assert component["purl"] == "pkg:pypi/boto3@1.44.5"
    assert [each["value"][0] for each in component["properties"]] == ["a", "b"]


def test_package_for_another_python_is_not_in_the_bill() -> None:
    """The lock is for every platform, the bill for this image."""
    bill = json.loads(SBOM["document"]([BOTO3], SBOM["read_lock"](LOCK)))
    assert [each["name"] for each in bill["components"]] == ["boto3"]


def test_order_of_the_packages_does_not_change_the_bill() -> None:
    """Equal images give equal bytes."""
    locked = SBOM["read_lock"](LOCK)
    numpy = ("numpy", "2.4.6")
    assert SBOM["document"]([BOTO3, numpy], locked) == SBOM["document"]([numpy, BOTO3], locked)


@pytest.mark.parametrize("stranger", [("left-pad", "1.0"), ("boto3", "1.44.6")])
def test_package_that_no_lock_names_is_refused(stranger: tuple[str, str]) -> None:
    """What came in by another way stops the build."""
    with pytest.raises(SystemExit, match=stranger[0]):
        SBOM["document"]([BOTO3, stranger], SBOM["read_lock"](LOCK))
