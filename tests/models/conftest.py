"""One tiny model of each family, and one fine-tune, for the whole folder."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelmill.spec.figures import Finetuned
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.settings import ContractSettings, FinetuneSettings
from modelmill.stages import finetune
from modelmill.stages.stage import Folders
from modelmill.store.address import open_store
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store

from ..tiny_stages import Family, RecordingPulse, made_once, make_rows, write_rows


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """Give a function that makes a family's model once."""
    return made_once(tmp_path_factory)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write training and evaluation rows."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(make_rows(32, 1), folder / "train.jsonl")
    write_rows(make_rows(9, 2), folder / "eval.jsonl")
    return folder


def settings_of(
    too_long: str = "error", max_length: int = 64, **changes: object
) -> FinetuneSettings:
    """Ask for a short fine-tune that learns something."""
    spec = {
        "num_train_epochs": 5,
        "learning_rate": 1e-2,
        "batch_size": 8,
        "eval_steps": 0.25,
        "precision": "float32",
    }
    return FinetuneSettings.model_validate(
        {
            "finetune": FinetuneSpec.model_validate(spec | changes),
            "contract": ContractSettings(max_length=max_length),
            "too_long": too_long,
            "seed": 1,
        }
    )


@dataclass(frozen=True)
class Tuned:
    """What a fine-tune left."""

    folder: Path
    figures: Finetuned
    pulse: RecordingPulse


Tune = Callable[..., Tuned]


@pytest.fixture(scope="session")
def tune(
    tmp_path_factory: pytest.TempPathFactory, model_of: Callable[[Family], Path], data: Path
) -> Tune:
    """Give a function that runs a fine-tune of a tiny llama."""

    def run(
        settings: FinetuneSettings | None = None,
        *,
        model: Path | None = None,
        rows: Path = data,
        pulse: RecordingPulse | None = None,
        inputs: Mapping[str, Path] | None = None,
    ) -> Tuned:
        pulse = RecordingPulse() if pulse is None else pulse
        output = tmp_path_factory.mktemp("tuned")
        outcome = finetune.run(
            settings_of() if settings is None else settings,
            Folders(
                inputs={"model": model or model_of("llama"), "data": rows, **(inputs or {})},
                output=output,
                resume=tmp_path_factory.mktemp("resume"),
            ),
            pulse,
        )
        assert isinstance(outcome.figures, Finetuned)
        return Tuned(output, outcome.figures, pulse)

    return run


@pytest.fixture(scope="session")
def tuned(tune: Tune) -> Tuned:
    """Fine-tune a tiny llama once."""
    return tune()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Run one real store."""
    with (
        EmbeddedStore(tmp_path_factory.mktemp("store")) as embedded,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in embedded.environment.items():
            patch.setenv(name, value)
        yield open_store(embedded.url, retry_budget_seconds=20)
