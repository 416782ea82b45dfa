"""What the safety check lets through can do no harm in the libraries, and what it knows is so."""

import json
import pickle
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.chat_template_utils import render_jinja_template

from modelmill.models.adapter import fresh_adapter, open_adapter, save_adapter
from modelmill.models.open import open_model, open_tokenizer
from modelmill.spec.finetune import FinetuneSpec
from modelmill.store.remote_code import NATIVE
from modelmill.store.safety import check_adapter, check_model
from modelmill.store.templates import ChatTemplate, TemplateFailed

from ..store.attacks import torch_payload
from ..store.published import CHAT, TOKENS, published_templates
from ..tiny_stages import Family

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own

CPU = torch.device("cpu")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse every connection, and keep where it was to go."""
    tried: list[object] = []

    def refuse(*where: Any, **_: Any) -> Any:
        tried.append(where[-1])
        raise OSError("no connections here")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def _add(path: Path, **keys: object) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **keys}))


def test_names_of_repositories_are_not_followed(
    tmp_path: Path, model_of: Callable[[Family], Path], asked: list[object]
) -> None:
    """A model and an adapter that name others as their origin are opened without a connection."""
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    folder.mkdir()
    for path in model_of("llama").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    evil = "evil/model"
    _add(folder / "config.json", _name_or_path=evil, text_config_origin={"_name_or_path": evil})
    _add(folder / "generation_config.json", _name_or_path=evil)
    _add(folder / "tokenizer_config.json", name_or_path=evil, tokenizer_file="/evil/tokenizer.json")
    base = open_model(folder, dtype=torch.float32, device=CPU)
    made = fresh_adapter(base, FinetuneSpec(r=2), ("q_proj",))
    torch.nn.init.ones_(next(p for n, p in made.named_parameters() if "lora_B" in n))
    save_adapter(made, adapter)
    _add(adapter / "adapter_config.json", base_model_name_or_path=evil, revision="evil")

    assert check_model(folder) == check_adapter(adapter) == ()
    open_tokenizer(folder)
    model, count = open_adapter(open_model(folder, dtype=torch.float32, device=CPU), adapter)

    assert count == 4
    assert model.get_base_model().config.name_or_path == str(folder)
    assert asked == []


def test_connection_would_be_noticed(asked: list[object]) -> None:
    """The control: who asks for something elsewhere is refused, and it is kept."""
    with pytest.raises(OSError, match="no connections here"):
        urlopen("http://evil.invalid/model")
    assert asked


@pytest.mark.parametrize("family", NATIVE)
def test_family_whose_code_is_left_out_is_one_of_transformers(family: str) -> None:
    """Its type has a config and a model that goes on with a text, in this version."""
    assert family in CONFIG_MAPPING_NAMES
    assert family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def test_render_writes_what_transformers_writes() -> None:
    """Character by character, for the templates of many families, or both refuse."""
    published, written = published_templates(), 0
    for name, source in published.items():
        template = ChatTemplate(source)
        for messages in (CHAT, CHAT[1:], CHAT[:3], CHAT[1:2]):
            for ask in (True, False):
                ours = theirs = ""
                with suppress(TemplateFailed):
                    ours = template.render(messages, ask=ask, special_tokens=TOKENS)
                with suppress(Exception):  # Templates may end with anything.
                    [[theirs], _] = render_jinja_template(
                        [list(messages)],
                        chat_template=source,
                        add_generation_prompt=ask,
                        **TOKENS,
                    )
                assert ours == theirs, name
                written += bool(ours)
    assert written > 4 * len(published)


def test_attack_in_a_torch_file_touches_the_canary_when_torch_opens_it(tmp_path: Path) -> None:
    """The control of the hostile folders: their torch files are torch's own form."""
    (tmp_path / "weights.pt").write_bytes(torch_payload(tmp_path / "canary"))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "weights.pt", weights_only=True)
    assert not (tmp_path / "canary").exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "canary").exists()
