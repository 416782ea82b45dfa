"""Feed the readers of the safety check what nobody would write, and see that they stay calm.

    python -m tests.store.fuzz --seconds 600

A reader may accept or refuse with an error of ours, within seconds and a bounded memory; anything
else is a defect, and the input is kept in tests/store/corpus, from where every later run of the
tests reads it again.  Inputs are sound files with bytes changed, moved, cut or taken from
each other, and templates put together from the words of the language.
"""

import argparse
import hashlib
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from modelmill.spec.errors import ModelmillError
from modelmill.store.gguf import read_gguf_header
from modelmill.store.json_files import check_keys, read_json
from modelmill.store.pickles import check_pickle
from modelmill.store.templates import TemplateFailed, check_template, templates_in
from modelmill.store.tensors import read_safetensors_header

from .attacks import GGUF_SEEDS, injection, old_torch_payload, torch_payload
from .layouts import gguf, old_torch_file, safetensors, torch_file
from .published import published_templates

CORPUS: Final = Path(__file__).with_name("corpus")
SLOWEST_SECONDS: Final = 30.0
"""A trial of a template may take 5 seconds of its own; machines may be busy."""
MEMORY_BYTES: Final = 2 * 2**30
_NOWHERE: Final = Path("/nowhere/canary")


def _json(path: Path) -> None:
    document = read_json(path)
    check_keys(path, document)
    for _, template in templates_in(document):
        check_template(template)


def _template(path: Path) -> None:
    check_template(path.read_text("utf-8", errors="replace"))


READERS: Final[Mapping[str, Callable[[Path], object]]] = {
    "safetensors": read_safetensors_header,
    "gguf": read_gguf_header,
    "json": _json,
    "jinja": _template,
    "bin": check_pickle,
}
"""By the suffix of what they read."""


def seeds() -> dict[str, list[bytes]]:
    """Give sound inputs, and hostile ones, for every reader."""
    config = {"a": [1, 2.5, None, True, {"b": "c"}], "auto_map": {}, "chat_template": "{{ a }}"}
    return {
        "safetensors": [safetensors(), safetensors("a", "b", "c")],
        "gguf": [
            gguf({"general.name": "x", "general.alignment": 64}, {"w": (4, 4), "v": (32,)}, 1152),
            *GGUF_SEEDS,
        ],
        "json": [json.dumps(config).encode(), b'{"a": 1e999, "b": "\\ud800", "c": -0}'],
        "jinja": [
            *(text.encode() for text in published_templates().values()),
            injection(_NOWHERE).encode(),
        ],
        "bin": [
            torch_file(),
            old_torch_file(),
            torch_payload(_NOWHERE),
            old_torch_payload(_NOWHERE),
        ],
    }


def corpus() -> list[Path]:
    """List the inputs that once went wrong, or that are worth to be read again."""
    return sorted(path for path in CORPUS.iterdir() if path.suffix[1:] in READERS)


def outcome(path: Path) -> str:
    """Read a file; say `accepted` or `refused`, or what else happened and should not."""
    started = time.monotonic()
    try:
        READERS[path.suffix[1:]](path)
        found = "accepted"
    except (ModelmillError, TemplateFailed):
        found = "refused"
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        return f"{type(error).__name__}: {error}"
    took = time.monotonic() - started
    return found if took < SLOWEST_SECONDS else f"took {took:.0f} s"


NUMBERS: Final = tuple(
    value.to_bytes(size, "little", signed=value < 0)
    for size in (4, 8)
    for value in (0, 1, -1, 2 ** (8 * size - 1) - 1, -(2 ** (8 * size - 1)), 2**16, 2**30)
)
_LANGUAGE: Final = """
    {{ }} {% %} {%- -%} {# #} for in if else endif endfor set endset macro endmacro call endcall
    filter endfilter raw endraw generation endgeneration break continue recursive namespace range
    messages loop loop.index content role bos_token dict add_generation_prompt raise_exception
    strftime_now tojson trim join replace map select attr length default ~ + - * / // % ** == <
    ( ) [ ] { } , : . | = 'a' "b" 0 1 99999 1e9 __class__ _x not and or is defined none true x y n.x
"""
WORDS: Final = tuple(_LANGUAGE.split())


def changed(body: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Change an input a little, once or several times."""
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        place = chance.randrange(len(body) + 1)
        match chance.randrange(7):
            case 0:
                body = body[:place] + bytes([chance.randrange(256)]) + body[place + 1 :]
            case 1:
                number = chance.choice(NUMBERS)
                body = body[:place] + number + body[place + len(number) :]
            case 2:
                body = body[:place]
            case 3:
                end = min(len(body), place + chance.randrange(1, 64))
                body = body[:end] + body[place:end] * chance.choice((1, 2, 50)) + body[end:]
            case 4:
                body = body[:place] + body[place + chance.randrange(1, 64) :]
            case 5:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                body = body[:place] + other[start : start + chance.randrange(1, 200)] + body[place:]
            case _:
                word = chance.choice(WORDS).encode()
                body = body[:place] + b" " + word + b" " + body[place:]
    return body[:200_000]


def written(chance: random.Random) -> bytes:
    """Put a template together from words."""
    words = chance.choices(WORDS, k=chance.randrange(1, 60))
    opened, closed = chance.choice((("{{", "}}"), ("{%", "%}")))
    return f"{opened} {' '.join(words)} {closed}".encode()


def fuzz(seconds: float, seed: int, folder: Path) -> tuple[dict[str, int], list[Path]]:
    """Try inputs for a while.

    Returns:
        How many of each kind had which outcome, and the files that went wrong.
    """
    chance, given = random.Random(seed), seeds()
    counts: dict[str, int] = {}
    wrong: list[Path] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        kind = chance.choice(list(READERS))
        body = (
            written(chance)
            if kind == "jinja" and chance.random() < 0.5
            else changed(chance.choice(given[kind]), given[kind], chance)
        )
        path = folder / f"input.{kind}"
        path.write_bytes(body)
        found = outcome(path)
        is_calm = found in ("accepted", "refused")
        counts[f"{kind} {found if is_calm else 'wrong'}"] = (
            counts.get(f"{kind} {found if is_calm else 'wrong'}", 0) + 1
        )
        if not is_calm:
            kept = folder / f"{hashlib.sha256(body).hexdigest()[:12]}.{kind}"
            kept.write_bytes(body)
            wrong.append(kept)
            print(f"{kept.name}: {found}", file=sys.stderr)  # noqa: T201 - a program by hand
    return counts, wrong


def main() -> int:
    """Run by hand, for as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with tempfile.TemporaryDirectory() as scratch:
        counts, wrong = fuzz(asked.seconds, asked.seed, Path(scratch))
        for path in wrong:
            (CORPUS / path.name).write_bytes(path.read_bytes())
    print(json.dumps({"seed": asked.seed, **dict(sorted(counts.items()))}))  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
