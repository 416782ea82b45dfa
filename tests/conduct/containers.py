"""Play a container engine: containers are processes of this machine, in a folder of records.

    python containers.py FOLDER run|ps|inspect|stop|logs ...

Takes the options that examples/backend/containers.py gives, and answers as Docker does.  What a
volume mounts is moved by rewriting what the container is told; its `python` is the script that the
image's name points to.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])


def read(name: str) -> dict[str, Any]:
    """Read the record of a container, with how it is now."""
    record: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    code = FOLDER / f"{name}.code"
    ended = code.exists() and code.read_text(encoding="utf-8").strip()
    state = {"Status": "exited", "ExitCode": int(ended)} if ended else {"Status": "running"}
    return {**record, "State": state}


def run(words: list[str]) -> None:
    """Start a container: a shell that waits for it and writes down its exit code."""
    parser = argparse.ArgumentParser()
    for option in ("--name", "--volume"):
        parser.add_argument(option, required=True)
    for option in ("--label", "--env"):
        parser.add_argument(option, action="append", default=[])
    parser.add_argument("--detach", action="store_true", required=True)
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(words)
    outside, _, inside = given.volume.partition(":")
    told = dict(
        word.split("=", 1) if "=" in word else (word, os.environ[word]) for word in given.env
    )
    told = {name: value.replace(inside, outside) for name, value in told.items()}
    record = {
        "Name": f"/{given.name}",
        "Created": f"{time.time():.6f}",
        "Config": {"Labels": dict(label.split("=", 1) for label in given.label)},
    }
    (FOLDER / f"{given.name}.json").write_text(json.dumps(record), encoding="utf-8")
    program, log, code = given.image, FOLDER / f"{given.name}.log", FOLDER / f"{given.name}.code"
    ends = f'echo $? > "{code}.new"; mv "{code}.new" "{code}"'
    wait = f'"{program}" & echo $! > "{code}.pid"; wait $!; {ends}'
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    with log.open("wb") as printed:
        subprocess.Popen(
            ["sh", "-c", wait],
            env={**kept, **told},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            cwd=outside,
            start_new_session=True,
        )
    sys.stdout.write(f"{given.name}\n")


def stop(words: list[str]) -> None:
    """Send SIGTERM, and SIGKILL after some time, to all of a container."""
    _, seconds, name = words
    process = int((FOLDER / f"{name}.code.pid").read_text(encoding="utf-8"))
    deadline = time.monotonic() + float(seconds)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
    while read(name)["State"]["Status"] == "running":
        if time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def main(command: str, *words: str) -> None:
    """Do what Docker does with such words."""
    match command:
        case "run":
            run(list(words))
        case "ps":
            label = words[-1].removeprefix("label=").split("=", 1)
            for path in sorted(FOLDER.glob("*.json")):
                if label[1] == read(path.stem)["Config"]["Labels"].get(label[0]):
                    sys.stdout.write(f"{path.stem}\n")
        case "inspect":
            sys.stdout.write(json.dumps([read(name) for name in words]))
        case "stop":
            stop(list(words))
        case "logs":
            sys.stdout.write((FOLDER / f"{words[0]}.log").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(*sys.argv[2:])
