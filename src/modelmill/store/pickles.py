"""What a pickle would import if somebody opened it, found without opening it.

Many honest folders hold pickles that nothing here reads: other forms of the same weights, the
state of a trainer.  They are left out of our copy whatever is in them, and that is the fence.
But whoever put a call to the shell into one is not to be trusted with the rest of the folder,
so the names that stand in them openly are looked at.  A clever pickle can hide its names; then
it is left out like the others.
"""

import io
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from modelmill.store.refusals import refused

LARGEST_PICKLE_BYTES: Final = 8 * 2**20
"""Without the tensors: of an archive the index, of the older form what comes before the data."""

_BROKEN: Final = (
    *(ValueError, LookupError, EOFError, OSError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
"""What reading a damaged archive or pickle can end with; `zipfile` says of a method of compression
that it does not know that it is not implemented."""
_ZIP: Final = b"PK\3\4"
_OLD_TORCH: Final = b"\x80\2\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLES: Final = 3

MODULES: Final = frozenset(
    {
        *("os", "nt", "posix", "posixpath", "ntpath", "sys", "subprocess", "commands", "shutil"),
        *("socket", "runpy", "importlib", "imp", "pty", "code", "codeop", "bdb", "pdb", "timeit"),
        *("cProfile", "profile", "trace", "ctypes", "cffi", "webbrowser", "http", "urllib"),
        *("requests", "httpx", "aiohttp", "ftplib", "smtplib", "telnetlib", "pip", "venv"),
        *("marshal", "pickle", "_pickle", "asyncio", "multiprocessing", "signal", "tempfile"),
    }
)
"""No weights and no state of a trainer needs them."""

NAMES: Final = frozenset(
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("eval", "exec", "compile", "open", "__import__", "input", "breakpoint", "vars")
) | {"torch.load", "torch.hub", "torch.serialization.load", "numpy.load"}


def check_pickle(path: Path) -> None:
    """Refuse a torch file that names what runs commands, and a file that is no torch file.

    Raises:
        UnsafeArtifact: it does.
    """
    for name in _imports(path):
        module = name.partition(".")[0]
        if module in MODULES or name in NAMES or any(name.startswith(f"{n}.") for n in NAMES):
            raise refused(path, f"whoever opened it would run {name}")


def _imports(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP)) == _ZIP:
                yield from _in_archive(path)
                return
            file.seek(0)
            if file.read(len(_OLD_TORCH)) != _OLD_TORCH:
                raise refused(path, "it is a pickle, and not one that torch wrote")
            # Behind the number that begins the older form: a version, a machine, the index.
            start = io.BytesIO(file.read(LARGEST_PICKLE_BYTES))
            for _ in range(_PICKLES):
                yield from _names(start)
    except _BROKEN as error:
        raise refused(path, "it is no whole torch file") from error


def _in_archive(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        pickles = [each for each in archive.infolist() if each.filename.endswith(".pkl")]
        if not pickles:
            raise refused(path, "it is an archive without the index of a torch file")
        for each in pickles:
            if each.file_size > LARGEST_PICKLE_BYTES:
                raise refused(path, f"its index unpacks to {each.file_size:,} bytes")
            with archive.open(each) as file:
                yield from _names(io.BytesIO(file.read(LARGEST_PICKLE_BYTES)))


def _names(body: io.BytesIO) -> Iterator[str]:
    """Follow the opcodes up to the end of a pickle, and the texts that become names.

    In memory, because an opcode may ask a file for more bytes than there is memory.
    """
    texts: list[str] = []
    kept: dict[int, str] = {}
    top = ""
    for opcode, argument, _ in pickletools.genops(body):
        match opcode.name:
            case "GLOBAL" | "INST":
                yield str(argument).replace(" ", ".")
                top = ""
            case "STACK_GLOBAL":
                yield ".".join(texts[-2:])
                top = ""
            case "MEMOIZE":
                kept[len(kept)] = top
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                kept[int(str(argument))] = top
            case "GET" | "BINGET" | "LONG_BINGET":
                top = kept.get(int(str(argument)), "")
                texts = [*texts[-1:], top] if top else texts
            case _:
                top = argument if isinstance(argument, str) else ""
                texts = [*texts[-1:], top] if top else texts
