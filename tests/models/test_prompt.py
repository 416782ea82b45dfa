from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import GenerationConfig, PreTrainedTokenizerFast

from modelmill.models.prompt import (
    Contract,
    build_contract,
    contract_for,
    contract_into_tokenizer,
    encode_prompt,
    encode_row,
    encode_text,
    load_contract,
    save_contract,
)
from modelmill.spec.errors import DataError
from modelmill.spec.settings import ContractSettings

from ..tiny_stages import EOS, Family, make_row, make_tokenizer

BOS = 0
ASKED = ContractSettings(max_length=64)


def tokenizer_with_bos() -> PreTrainedTokenizerFast:
    """Make a tokenizer whose own template puts a BOS in front."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


TOKENIZERS = {False: make_tokenizer(), True: tokenizer_with_bos()}


def contract_and_template(uses_bos: bool) -> tuple[Contract, PreTrainedTokenizerFast]:
    """Build the contract and write it into the tokenizer."""
    tokenizer = TOKENIZERS[uses_bos]
    contract = build_contract(tokenizer, ASKED, (EOS,))
    contract_into_tokenizer(contract, tokenizer, GenerationConfig())
    return contract, tokenizer


@given(prompt=st.text(min_size=1), completion=st.text(), uses_bos=st.booleans())
def test_ids_are_equal_in_training_inference_and_any_server(
    prompt: str, completion: str, uses_bos: bool
) -> None:
    """A row begins with the ids of its prompt, which a chat server would produce as well."""
    contract, tokenizer = contract_and_template(uses_bos)
    asked = make_row(prompt, completion)
    ids = encode_prompt(contract, tokenizer, asked)
    row = encode_row(contract, tokenizer, asked)
    served = tokenizer.apply_chat_template(
        [{"role": "system", "content": "no"}, {"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert row.input_ids[: row.prompt_length] == ids == served


@given(prompt=st.text(alphabet="<s>/ ab{}\n"), given_bos=st.booleans(), uses_bos=st.booleans())
def test_bos_stands_once_if_the_family_uses_it(
    prompt: str, given_bos: bool, uses_bos: bool
) -> None:
    """Neither the tokenizer's template nor the prompt's own text doubles the BOS."""
    contract, tokenizer = contract_and_template(uses_bos)
    prompt = prompt.replace("<s>", "")
    ids = encode_text(contract, tokenizer, "<s>" + prompt if given_bos else prompt)
    assert ids.count(BOS) == int(uses_bos or given_bos)
    assert contract.bos == (BOS if uses_bos else None)


@given(completion=st.text())
def test_eos_ends_every_row_inside_the_loss(completion: str) -> None:
    """The last id of a row is the EOS, and it is never part of the prompt."""
    contract, tokenizer = contract_and_template(uses_bos=True)
    row = encode_row(contract, tokenizer, make_row("q", completion))
    assert row.input_ids[-1] == contract.eos[0]
    assert row.prompt_length < len(row.input_ids)


def test_contract_names_every_eos_once_with_the_tokenizers_own_first() -> None:
    """The EOS that training appends is the tokenizer's; generation's others stop as well."""
    contract = build_contract(make_tokenizer(), ASKED, (7, EOS, 9))
    assert contract.eos == (EOS, 7, 9)


def test_contract_without_any_eos_is_refused() -> None:
    """A model that cannot learn to stop is not trained."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="learn to stop"):
        build_contract(tokenizer, ASKED, ())


def test_pad_falls_back_to_eos() -> None:
    """A tokenizer without a pad token pads with its EOS."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    assert build_contract(tokenizer, ASKED, ()).pad == EOS


def test_contract_survives_writing(tmp_path: Path) -> None:
    """What is read is what was written, and the folder's contract is used."""
    contract = Contract(max_length=64, bos=None, eos=(5, 6), pad=7)
    save_contract(contract, tmp_path)
    assert load_contract(tmp_path) == contract
    assert contract_for(tmp_path, make_tokenizer(), ASKED) == contract


def test_contract_of_another_max_length_is_refused(tmp_path: Path) -> None:
    """A model is not used at a length it was not trained for without a word."""
    save_contract(Contract(max_length=32, bos=None, eos=(5,), pad=7), tmp_path)
    with pytest.raises(DataError, match="max_length 32, the run has 64"):
        contract_for(tmp_path, make_tokenizer(), ASKED)


def test_contract_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """A document with fields this version does not know is not half understood."""
    (tmp_path / "prompt.json").write_text('{"format": 2, "max_length": 8, "surprise": 1}')
    with pytest.raises(DataError, match="cannot be read"):
        load_contract(tmp_path)


def test_base_models_contract_reads_the_generation_config(
    model_of: Callable[[Family], Path],
) -> None:
    """A base folder without a contract gets one from its tokenizer and configs."""
    contract = contract_for(model_of("llama"), make_tokenizer(), ASKED)
    assert contract == Contract(max_length=64, bos=None, eos=(EOS,), pad=EOS)
