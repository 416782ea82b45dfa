"""Each image can do the work of its own stage."""

from importlib.metadata import distribution
from pathlib import Path

import pytest

from .conftest import ROOT, Image, Images

WORK = {
    "light": "modelmill.stages.fetch modelmill.stages.report modelmill.cli.main kubernetes",
    "finetune": "modelmill.stages.finetune trl peft",
    "merge": "modelmill.stages.merge peft",
    "quantize": "modelmill.stages.quantize modelmill.stages.quantize.gptq",
    "infer": "modelmill.stages.infer modelmill.stages.infer.gptq_engine",
}


TESTS_OF = {
    "finetune": "models/test_finetune.py",
    "quantize": "quantize",
    "infer": "infer",
}
"""Tests that need nothing but one stage; those of merge fine-tune first."""

TOOLS = ("pytest", "pluggy", "iniconfig", "hypothesis", "sortedcontainers")


@pytest.mark.parametrize("image", WORK, indirect=True)
def test_stage_finds_everything_it_imports(image: Image) -> None:
    """The lock is complete for what the stage's modules load."""
    modules = WORK[image.name].split()
    ended = image.python("import importlib\n" + "\n".join(f"import {name}" for name in modules))
    assert ended.code == 0, ended.err


def test_light_image_is_light(images: Images) -> None:
    """The conductor starts before anything heavy has been pulled."""
    ended = images.open("light").python("import torch")
    assert "No module named 'torch'" in ended.err


@pytest.mark.parametrize("image", TESTS_OF, indirect=True)
def test_stage_works_without_compiler_network_or_rights(image: Image) -> None:
    """The stage's own tests pass in its image, and nothing was compiled on the way."""
    ended = image.run(
        *("python", "-c", RUN_TESTS, "-p", "no:cacheprovider", "-c", "/dev/null"),
        *(
            "--rootdir=/scratch",
            "--import-mode=importlib",
            f"/scratch/tests/{TESTS_OF[image.name]}",
        ),
        shown={"tests": ROOT / "tests", **_tools()},
    )
    assert ended.code == 0, ended.out + ended.err
    assert ended.out.splitlines()[-1] == "compiled: []"


RUN_TESTS = """
import os, sys
sys.path.append("/scratch/tools")
import pytest
code = pytest.main(sys.argv[1:])
names = [name for _, _, files in os.walk("/scratch/.cache") for name in files]
print("compiled:", [name for name in names if name.endswith((".so", ".o", ".cpp", ".cu"))])
sys.exit(code)
"""


def _tools() -> dict[str, Path]:
    """Find the test tools of this Python, which are in no image, with their metadata."""
    found = {}
    for name in TOOLS:
        tool = distribution(name)
        tops = {file.parts[0] for file in tool.files or ()} - {"..", "__pycache__"}
        found |= {f"tools/{top}": Path(str(tool.locate_file(top))) for top in tops}
    return found
