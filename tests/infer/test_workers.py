"""Batches that a CPU answers at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear8bitLt
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from modelmill.models.open import open_tokenizer
from modelmill.models.prompt import contract_for
from modelmill.spec.batching import STATEFUL
from modelmill.spec.settings import ContractSettings
from modelmill.stages.infer.generate import Generator
from modelmill.stages.infer.prefix import NO_PREFIX
from modelmill.stages.infer.workers import Workers, at_once, workers_for
from modelmill.stages.stop import Stop, StopRequested

from .test_infer import figures_of, infer, settings_for

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


@pytest.fixture
def three_cores() -> Iterator[None]:
    """Let torch have three threads, as a pod's limit does."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def tiny(**changes: object) -> LlamaForCausalLM:
    """Make a model."""
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 16}
    return LlamaForCausalLM(LlamaConfig(intermediate_size=8, **sizes, **changes))


def test_answers_are_those_of_one_batch_at_a_time(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three workers, to the byte; interrupted, it goes on to the same."""
    alone, expected = infer(llama, data, tmp_path / "alone")
    with monkeypatch.context() as patch:
        patch.setattr("modelmill.stages.infer.workers_for", lambda _: Workers(3, 1))
        outcome, found = infer(llama, data, tmp_path / "three")
    assert found == expected
    assert figures_of(outcome).generated_tokens == figures_of(alone).generated_tokens
    assert figures_of(outcome).generate_seconds > 0
    own = settings_for(prompt="own", shots=2, seed=1)
    _, expected = infer(llama, data, tmp_path / "own-alone", own)
    with monkeypatch.context() as patch:
        patch.setattr("modelmill.stages.infer.workers_for", lambda _: Workers(3, 1))
        _, found = infer(llama, data, tmp_path / "own-three", own)
    assert found == expected


def test_items_are_worked_on_at_the_same_time(three_cores: None) -> None:
    """Each waits for the others, in a thread with its share of the cores; ours keeps its own."""
    all_there = threading.Barrier(3)

    def work(item: int, _: threading.Event) -> tuple[int, int]:
        all_there.wait(timeout=30)
        return item, torch.get_num_threads()

    assert at_once(work, [5, 6, 7], threads=1) == [(5, 1), (6, 1), (7, 1)]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("broken", [0, 1])
def test_failed_item_ends_the_others(broken: int) -> None:
    """Nobody waits for answers that nobody will use, whichever comes first."""
    heard: list[bool] = []

    def work(item: int, give_up: threading.Event) -> None:
        if item == broken:
            raise ValueError("broken")
        heard.append(give_up.wait(timeout=30))

    with pytest.raises(ValueError, match="broken"):
        at_once(work, [0, 1], threads=1)
    assert heard == [True]


def to_the_process() -> None:
    """Ask as from outside: mostly the main thread is interrupted."""
    os.kill(os.getpid(), signal.SIGTERM)


def to_this_thread() -> None:
    """Ask so that the main thread is not: the kernel may choose any."""
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)


@pytest.mark.parametrize("ask", [to_the_process, to_this_thread])
def test_request_to_stop_ends_all(ask: Callable[[], None]) -> None:
    """A signal ends the wait, and every worker hears of it."""
    heard: list[bool] = []
    all_there = threading.Barrier(2)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    Stop().install()

    def work(item: int, give_up: threading.Event) -> None:
        all_there.wait(timeout=30)
        if item == 0:
            time.sleep(0.2)  # the main thread waits by then
            ask()
        heard.append(give_up.wait(timeout=30))

    try:
        with pytest.raises(StopRequested):
            at_once(work, [0, 1], threads=1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # Interrupted while it starts a thread, the pool does not know that one.
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(timeout=30)
    assert heard == [True, True]


def test_given_up_batch_ends_with_its_token(llama: Path) -> None:
    """Rather than with its last one."""
    tokenizer = open_tokenizer(llama)
    contract = contract_for(llama, tokenizer, ContractSettings(max_length=128))
    model = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32)
    generator = Generator(model, tokenizer, contract, max_new_tokens=10)
    given_up = threading.Event()
    whole = generator._generate([[5, 6], [7, 8]], NO_PREFIX, given_up)
    given_up.set()
    cut = generator._generate([[5, 6], [7, 8]], NO_PREFIX, given_up)
    assert [len(row) for row in cut] == [1, 1]
    assert [len(row) for row in whole] == [10, 10]


def test_workers_share_the_cores(three_cores: None) -> None:
    """One each; not where a forward writes into the model, by the length of what it reads."""
    plain = tiny()
    assert workers_for(plain) == Workers(3, 1)
    torch.set_num_threads(9)
    assert workers_for(plain) == Workers(4, 2)
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert workers_for(tiny(rope_parameters=scaled)) == Workers(1, 9)


def test_model_that_forwards_write_into_answers_one_batch_at_a_time(three_cores: None) -> None:
    """What a recurrent one has read, and what bitsandbytes makes of weights at first."""
    alone = Workers(1, 3)
    sizes = {"hidden_size": 8, "lru_width": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = RecurrentGemmaConfig(intermediate_size=8, vocab_size=16, **sizes)
    recurrent = RecurrentGemmaForCausalLM(config)
    assert workers_for(recurrent) == alone
    adapter = LoraConfig(r=1, target_modules=["down_proj"])
    assert workers_for(get_peft_model(recurrent, adapter)) == alone
    packed = tiny()
    packed.lm_head = Linear8bitLt(8, 16, bias=False, has_fp16_weights=False)
    assert workers_for(packed) == alone


def test_families_that_keep_what_they_read_are_those_that_transformers_marks() -> None:
    """`plan` knows no modules, so it has a list of the families whose code bears the mark."""
    marked = {
        path.parent.name
        for path in Path(transformers.__file__).parent.glob("models/*/modeling_*.py")
        if "_is_stateful = True" in path.read_text(encoding="utf-8")
    }
    assert marked >= STATEFUL
    # What hears or sees besides is none of this mill's models.
    assert marked - STATEFUL == {
        *("minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "nemotron3_5_transcribe"),
        "nemotron_h_omni",
    }
