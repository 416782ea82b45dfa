"""A committed model as one GGUF file on this machine, for as long as it is needed."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from modelmill.spec.errors import InputMissing
from modelmill.spec.names import MEASUREMENTS, Gguf, gguf_name
from modelmill.spec.records import FileRecord
from modelmill.store.artifact import Committed, pull
from modelmill.store.gguf import read_gguf_header
from modelmill.store.parcel import Made
from modelmill.store.s3 import Store
from modelmill.store.safety import check_model
from modelmill.store.space import check_space

WEIGHTS: Final = ".safetensors"
READ: Final = frozenset({".json", ".jinja"})
"""Beside weights: config, tokenizer and its chat templates."""


@contextmanager
def as_gguf(
    store: Store, committed: Committed, name: str, gguf: Gguf, work: Path
) -> Iterator[Made]:
    """Convert a model, and have the file while others read it.

    Args:
        store: where the model is.
        committed: the model, in 16 bits.
        name: what people call the model; the file is called after it.
        gguf: how weights are held.
        work: a folder for the model and the file.

    Raises:
        DoesNotFit: there is no room for both.
        InputMissing: what converts is not installed.
        SpecError: the model is none that can be converted.
    """
    try:
        from modelmill.models.gguf import read_outline, write_gguf
    except ImportError as error:
        raise InputMissing(
            f"Exporting as GGUF needs {error.name}, which this Python lacks",
            fix="pip install 'modelmill[gguf]'",
        ) from error
    files = committed.manifest.files
    settings = tuple(
        file.path
        for file in files
        if PurePosixPath(file.path).suffix in READ and file.path != MEASUREMENTS
    )
    weights = [file for file in files if file.path.endswith(WEIGHTS)]
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="export-", dir=work) as made:
        file = Path(made) / "file"
        with tempfile.TemporaryDirectory(prefix="model-", dir=made) as fetched:
            folder = Path(fetched)
            pull(store, committed, folder, settings)
            # Before gigabytes are fetched that nothing can be made of.
            outline = read_outline(folder, name)
            check_space(work, 2 * sum(file.size_bytes for file in weights))
            pull(store, committed, folder, tuple(file.path for file in weights))
            check_model(folder)
            write_gguf(outline, folder, file, gguf)
        # Written by one implementation and read by another, which believes no number.
        read_gguf_header(file)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        record = FileRecord(
            path=gguf_name(name, gguf), size_bytes=file.stat().st_size, sha256=digest
        )
        yield Made(record, file)
