"""Each image can do the work of its own stage."""

import pytest

from .conftest import Image, Images

WORK = {
    "light": "modelmill.stages.fetch modelmill.stages.report modelmill.cli.main kubernetes",
    "finetune": "modelmill.stages.finetune trl peft",
    "merge": "modelmill.stages.merge peft",
    "quantize": "modelmill.stages.quantize modelmill.stages.quantize.gptq",
    "infer": "modelmill.stages.infer modelmill.stages.infer.gptq_engine",
}


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


@pytest.mark.parametrize("image", ["quantize", "infer"], indirect=True)
def test_import_of_the_engine_compiles_nothing(image: Image) -> None:
    """No image that runs has a compiler, so nothing may wait for one."""
    ended = image.python(
        "import gptqmodel, os\n"
        "print([os.path.join(where, name) for where, _, names in os.walk('/work')"
        " for name in names if name.endswith(('.so', '.o', '.cpp'))])"
    )
    assert ended.out.splitlines()[-1] == "[]"
