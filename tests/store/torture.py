"""Torture the publish protocol: twins that are killed, behind a proxy that damages everything.

    python -m tests.store.torture --rounds 1000 --seed 1
    python -m tests.store.torture --flips 10000

The last line of the output is one JSON object.  The exit status is 0 only if no round of ours
has a violation and every negative control has one: a harness in which they pass proves nothing.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final

from modelmill.store.connection import Connection
from modelmill.store.embedded import BUCKET
from modelmill.store.s3 import Store
from tests.store.flips import Flipper, Flips
from tests.store.proxy import Fault, Proxy
from tests.store.scene import PROTOCOLS, Protocol, draw_scene
from tests.store.storm import Storm
from tests.store.theatre import Result, Theatre
from tests.store.weed import Weed

READ_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 0.2
"""Short, so that silence and a burst of refusals cost seconds; the budget is a stage's own."""

CONTROLS: Final = PROTOCOLS[1:]
FORK: Final = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Asked:
    """The command line."""

    rounds: int
    control_rounds: int
    seed: int
    lanes: int
    outages: int
    down_seconds: float
    flips: int


@dataclass(frozen=True)
class Summary:
    """What all rounds showed."""

    rounds: int
    violations: int
    kills: int
    faults: int
    negative_controls: Mapping[str, int]
    """Violations found, by what is done otherwise."""
    faults_by_kind: Mapping[str, int]
    outages: int
    seed: int
    seconds: float


def main() -> int:
    """Torture, and say how it went."""
    asked = _read_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        (folder / "weed").mkdir()
        with Weed(folder / "weed") as weed:
            os.environ.update(_credentials(weed, folder))
            if asked.flips:
                return _say(asdict(_flip_all(asked, weed, folder)))
            return _say(asdict(_play_all(asked, weed, folder)))


def _say(summary: dict[str, Any]) -> int:
    sys.stdout.write(json.dumps(summary) + "\n")
    is_proof = all(summary.get("negative_controls", {}).values())
    is_proof = is_proof and summary.get("flips") == summary.get("transfers")
    return 0 if is_proof and not summary["violations"] else 1


def _read_arguments() -> Asked:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--control-rounds", type=int, default=12, help="of each control")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=8, help="rounds at a time")
    parser.add_argument("--outages", type=int, default=0, help="kill -9 of the store")
    parser.add_argument("--down-seconds", type=float, default=60.0)
    parser.add_argument("--flips", type=int, default=0, help="flipped transfers, and nothing else")
    return Asked(**vars(parser.parse_args()))


def _credentials(weed: Weed, folder: Path) -> dict[str, str]:
    """Put the credentials into a file, as a cluster does: what is in variables never expires."""
    path = folder / "credentials"
    path.write_text(
        "[default]\n"
        f"aws_access_key_id = {weed.environment['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {weed.environment['AWS_SECRET_ACCESS_KEY']}\n",
        encoding="utf-8",
    )
    secrets = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    for name in secrets:
        os.environ.pop(name, None)
    others = {name: value for name, value in weed.environment.items() if name not in secrets}
    del others["AWS_ENDPOINT_URL_S3"]
    return {**others, "AWS_SHARED_CREDENTIALS_FILE": str(path)}


def _flip_all(asked: Asked, weed: Weed, folder: Path) -> Flips:
    """Flip half of them where the SDK's checksums are taken, half where they are refused."""
    total = Flips()
    for refuses_crc in (False, True):
        with closing(Proxy(weed.environment)) as proxy:
            if refuses_crc:
                proxy.always("*", "no crc")
            calm = Store(BUCKET, f"flips-{refuses_crc}", Connection("s3://"))
            os.environ["AWS_ENDPOINT_URL_S3"] = proxy.url
            behind = replace(calm, connection=Connection("s3://"))
            flipper = Flipper(calm, behind, proxy, folder)
            total += flipper.flip_many(asked.flips // 2)
            # Not before: whoever adapts reads the environment again.
            del os.environ["AWS_ENDPOINT_URL_S3"]
    return total


def _play_all(asked: Asked, weed: Weed, folder: Path) -> Summary:
    started = time.monotonic()
    ours: list[tuple[Protocol, int]] = [("ours", number) for number in range(asked.rounds)]
    others = [(each, number) for number in range(asked.control_rounds) for each in CONTROLS]
    with _proxy_process(weed, asked.seed) as proxy:
        url = proxy.recv()
        jobs = [*ours, *others]
        pipes = [
            _lane_process(
                _Lane(asked.seed, url, folder / f"lane-{lane}", jobs[lane :: asked.lanes])
            )
            for lane in range(asked.lanes)
        ]
        results = list(_collect(pipes, _Outages(asked, weed)))
        proxy.send("enough")
        faults: Counter[Fault] = proxy.recv()
    if len(results) < len(jobs):
        sys.exit(f"{len(jobs) - len(results)} rounds were not played to their end")
    return Summary(
        rounds=sum(protocol == "ours" for protocol, _ in results),
        violations=sum(len(each.violations) for protocol, each in results if protocol == "ours"),
        kills=sum(each.kills for protocol, each in results if protocol == "ours"),
        faults=sum(faults.values()),
        negative_controls={
            control: sum(len(each.violations) for protocol, each in results if protocol == control)
            for control in (CONTROLS if asked.control_rounds else ())
        },
        faults_by_kind=dict(sorted(faults.items())),
        outages=asked.outages,
        seed=asked.seed,
        seconds=round(time.monotonic() - started, 1),
    )


@contextmanager
def _proxy_process(weed: Weed, seed: int) -> Iterator[Pipe]:
    """Run the proxy, which has threads, in a process of its own."""
    here, there = FORK.Pipe()

    def serve() -> None:
        proxy = Proxy(weed.environment)
        proxy.choose = Storm(seed)
        proxy.late_seconds = 1.5 * READ_SECONDS
        there.send(proxy.url)
        there.recv()
        there.send(Counter(proxy.applied))

    process = FORK.Process(target=serve, daemon=True)
    process.start()
    yield here
    process.join()


@dataclass(frozen=True)
class _Lane:
    """Rounds that one process plays one after the other."""

    seed: int
    proxy_url: str
    folder: Path
    jobs: Sequence[tuple[Protocol, int]]

    def run(self, pipe: Pipe) -> None:
        """Play them and send what they showed."""
        # A writer that is asked to stop before it listens must end, and not in our code.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        calm = Store(BUCKET, "", Connection("s3://"))
        os.environ["AWS_ENDPOINT_URL_S3"] = self.proxy_url
        # Never used here: every writer is forked with a client that has made no request.
        stormy = replace(calm, connection=Connection("s3://", READ_SECONDS, LONGEST_PAUSE_SECONDS))
        theatre = Theatre(calm, stormy, self.folder)
        pace_seconds = 0.3
        for protocol, number in self.jobs:
            result = theatre.play(draw_scene(self.seed, number, protocol, pace_seconds))
            if result.seconds:
                pace_seconds += 0.1 * (min(result.seconds, 2.0) - pace_seconds)
            pipe.send((protocol, number, result))
        pipe.close()


def _lane_process(lane: _Lane) -> Pipe:
    receiving, sending = FORK.Pipe(duplex=False)
    FORK.Process(target=lane.run, args=(sending,), daemon=True).start()
    sending.close()
    return receiving


class _Outages:
    """Kills the store now and then."""

    def __init__(self, asked: Asked, weed: Weed) -> None:
        self._weed = weed
        self._down_seconds = asked.down_seconds
        gap = (asked.rounds + len(CONTROLS) * asked.control_rounds) // (asked.outages + 1)
        self._due = [gap * (number + 1) for number in range(asked.outages)]
        self._again_at = 0.0

    def look(self, done: int) -> None:
        """Kill it, or start it again, if it is time."""
        if self._again_at:
            if time.monotonic() > self._again_at:
                self._again_at = 0.0
                self._weed.start()
        elif self._due and done >= self._due[0]:
            self._due.pop(0)
            self._weed.kill()
            self._again_at = time.monotonic() + self._down_seconds


def _collect(pipes: list[Pipe], outages: _Outages) -> Iterator[tuple[Protocol, Result]]:
    """Take results as they come, and tell about them."""
    done = 0
    while pipes:
        for pipe in wait(pipes, timeout=1.0):
            assert isinstance(pipe, Pipe)
            try:
                protocol, number, result = pipe.recv()
            except EOFError:
                pipes.remove(pipe)
                continue
            done += 1
            if protocol == "ours":
                for violation in result.violations:
                    sys.stderr.write(f"round {number}: {violation}\n")
            if done % 100 == 0:
                sys.stderr.write(f"{done} rounds\n")
            yield protocol, result
        outages.look(done)


if __name__ == "__main__":
    sys.exit(main())
