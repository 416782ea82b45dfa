"""What torch promises, checked in every image that is made from it."""

import json

import pytest

from .conftest import Image, Images, descendants

every_image = pytest.mark.parametrize("image", descendants("torch"), indirect=True)

IMPORTED = """
import json, accelerate, bitsandbytes, safetensors, torch, transformers
print(json.dumps({"sum": int(torch.ones(2, 2).sum()), "cuda": torch.version.cuda}))
"""


@every_image
def test_torch_computes_for_a_user_nobody_knows(image: Image) -> None:
    """Import and arithmetic, without network, passwd entry or writable root."""
    ended = image.python(IMPORTED)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out.splitlines()[-1])
    assert found["sum"] == 4
    assert found["cuda"].startswith("13.")


@every_image
def test_heavy_layer_is_one_and_shared(image: Image, images: Images) -> None:
    """Every image of a model stage lies on the same bytes."""
    below = images.open("torch").layers
    assert image.layers[: len(below)] == below
    assert len(image.layers) <= len(below) + 3


@every_image
def test_heavy_packages_come_with_their_bytecode(image: Image) -> None:
    """Without it every start of a stage compiles them anew."""
    (packages,) = (image.root / "opt/modelmill/venv/lib").glob("python3.*/site-packages")
    for name in ("torch", "transformers"):
        assert [*(packages / name / "__pycache__").glob("__init__.*.pyc")]
