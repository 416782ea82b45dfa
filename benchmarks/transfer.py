"""How fast files go to the store and come back, beside s5cmd, side by side in one run.

    .venv/bin/python benchmarks/transfer.py [--rounds N] [--big-mib N] [--files N]

One big file and many of 5 MiB go to a SeaweedFS on this machine.  Ours hashes every byte on the
way, both ways.  The peer's push is s5cmd alone, which hashes nothing that would be kept; its
pull is followed by SHA-256, as a script would do it, because the peer of a verified pull is one
whose bytes are known too.  Pairs alternate and each round has a store of its own: SeaweedFS
does not give room back at once.  Ours runs in this process, as it does in a stage; s5cmd is
one static program.  The last line is one JSON object: medians of ratios, above 1 where ours is
faster, and CPU seconds of both sides and of the server.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from modelmill.spec.records import FileRecord
from modelmill.store.address import open_store
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store
from modelmill.store.transfer import download_many, upload_many

S5CMD, S5CMD_VERSION = "github.com/peak/s5cmd/v2", "v2.3.0"
MIB = 2**20
SMALL_BYTES = 5 * MIB
SIDES = ("ours", "s5cmd")


@dataclass
class Measured:
    """Seconds on the clock and of processors, by what was done and who did it."""

    server_folder: Path = Path()
    wall: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    server: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def take(self, name: str, work: Callable[[], None]) -> None:
        """Do it and measure it."""
        # What was written before is not this one's to write back.
        os.sync()
        before = _processor_seconds(), _server_seconds(self.server_folder), time.perf_counter()
        work()
        self.wall[name].append(time.perf_counter() - before[2])
        self.cpu[name].append(_processor_seconds() - before[0])
        self.server[name].append(_server_seconds(self.server_folder) - before[1])

    def ratio(self, name: str) -> float:
        """Say how many times as fast ours was: the median over pairs."""
        ours, theirs = (self.wall[f"{name} {side}"] for side in SIDES)
        return round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 2)


@dataclass(frozen=True)
class Files:
    """A folder, and the SHA-256 of each file in it by name."""

    folder: Path
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Peer:
    """s5cmd, and the store it talks to."""

    program: Path
    url: str

    def copy(self, source: str, destination: str) -> None:
        """Copy a folder, to the store or from it."""
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        command = [self.program, "--log", "error", "--endpoint-url", endpoint, "cp"]
        subprocess.run([*command, source, destination], check=True)

    def push(self, folder: Path) -> None:
        """Send a folder, and know nothing about its bytes."""
        self.copy(f"{folder}/", f"{self.url}/s5cmd/{folder.name}/")

    def pull(self, files: Files, destination: Path) -> None:
        """Fetch files and hash them."""
        self.copy(f"{self.url}/s5cmd/{files.folder.name}/*", f"{destination}/")
        found = {path.name: _sha256(path) for path in destination.iterdir()}
        assert found == files.digests


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--big-mib", type=int, default=2048)
    parser.add_argument("--files", type=int, default=400)
    asked = parser.parse_args()
    measured = Measured()
    with tempfile.TemporaryDirectory(prefix="transfer-") as name:
        folder = Path(name)
        program = s5cmd(folder / "go")
        sets = (
            make_files(folder / "big", 1, asked.big_mib * MIB),
            make_files(folder / "many", asked.files, SMALL_BYTES),
        )
        for number in range(asked.rounds):
            for files in sets:
                with served(folder / "store", measured) as store:
                    for side in SIDES if number % 2 else SIDES[::-1]:
                        measure(measured, side, files, store, Peer(program, store.url))
            say(measured, asked.rounds, number)
    print(json.dumps(result(measured)))


def measure(measured: Measured, side: str, files: Files, store: Store, peer: Peer) -> None:
    """Let one side push files and pull them again."""
    name, pulled = f"{files.folder.name} {side}", files.folder.with_name("pulled")
    pulled.mkdir()
    if side == "ours":
        records = measured_push(measured, name, store, files.folder)
        assert {record.path.split("/")[-1]: record.sha256 for record in records} == files.digests
        wanted = [(each, each.path, pulled / each.path.split("/")[-1]) for each in records]
        measured.take(f"pull {name}", lambda: download_many(store, wanted))
    else:
        measured.take(f"push {name}", lambda: peer.push(files.folder))
        measured.take(f"pull {name}", lambda: peer.pull(files, pulled))
    shutil.rmtree(pulled)


def measured_push(
    measured: Measured, name: str, store: Store, source: Path
) -> tuple[FileRecord, ...]:
    """Push a folder with our own transfer, and keep what it says about the files."""
    files = {f"ours/{source.name}/{path.name}": path for path in sorted(source.iterdir())}
    records: list[FileRecord] = []
    measured.take(f"push {name}", lambda: records.extend(upload_many(store, files)))
    return tuple(records)


@contextmanager
def served(folder: Path, measured: Measured) -> Iterator[Store]:
    """Start a store, warm, and remove it afterwards."""
    try:
        with EmbeddedStore(folder) as embedded:
            os.environ.update(embedded.environment)
            measured.server_folder = folder
            store = open_store(embedded.url)
            for number in range(16):
                store.put(f"warm/{number}", bytes(MIB))
            yield store
    finally:
        shutil.rmtree(folder)


def make_files(folder: Path, count: int, size_bytes: int) -> Files:
    """Write random files."""
    folder.mkdir()
    for number in range(count):
        with (folder / f"model-{number:05}.safetensors").open("wb") as file:
            for _ in range(0, size_bytes, MIB):
                file.write(os.urandom(MIB))
    return Files(folder, {path.name: _sha256(path) for path in folder.iterdir()})


def s5cmd(folder: Path) -> Path:
    """Find s5cmd, or build it with Go."""
    if found := shutil.which("s5cmd"):
        return Path(found)
    folder.mkdir()
    for command in (
        ["go", "mod", "init", "throwaway"],
        ["go", "get", f"{S5CMD}@{S5CMD_VERSION}"],
        ["go", "build", "-o", "s5cmd", S5CMD],
    ):
        subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    return folder / "s5cmd"


def say(measured: Measured, rounds: int, number: int) -> None:
    """Print a line per kind of work for people."""
    print(f"round {number + 1} of {rounds}", file=sys.stderr)
    for name in ("push big", "push many", "pull big", "pull many"):
        seconds = ", ".join(f"{side} {measured.wall[f'{name} {side}'][-1]:.1f} s" for side in SIDES)
        print(f"  {name:9}  {seconds}, so far {measured.ratio(name)}x", file=sys.stderr)


def result(measured: Measured) -> Mapping[str, object]:
    """Fold everything into what is compared from version to version."""

    def medians(seconds: Mapping[str, list[float]]) -> Mapping[str, float]:
        return {name: round(statistics.median(each), 2) for name, each in seconds.items()}

    return {
        "push_big_vs_s5cmd": measured.ratio("push big"),
        "push_many_vs_s5cmd": measured.ratio("push many"),
        "pull_big_vs_s5cmd_then_sha256": measured.ratio("pull big"),
        "pull_many_vs_s5cmd_then_sha256": measured.ratio("pull many"),
        "seconds": medians(measured.wall),
        "cpu_seconds": medians(measured.cpu),
        "server_cpu_seconds": medians(measured.server),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _server_seconds(folder: Path) -> float:
    """Read what the server of a folder has used so far."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            program, *arguments = (process / "cmdline").read_bytes().split(b"\0")
            if program.endswith(b"/weed") and any(
                str(folder).encode() in each for each in arguments
            ):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue
    return 0.0


if __name__ == "__main__":
    main()
