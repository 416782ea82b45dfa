"""What people see of a run from another terminal, while it is live and afterwards."""

import json
import os
import signal
import sys

import pytest

from modelmill.conduct.standing import run_row
from modelmill.store.s3 import Store

from ..processes import wait_for
from ..store.proxy import Proxy
from ..terminal import ESCAPE, on_a_terminal
from ..workshop import Workshop, write_rows
from .conftest import wait_until

GATED = """\
quantize: [{method: bitsandbytes}]
gate: {models: [nf4], against: base, max_worse: 0.02}
"""


def test_live_run_is_seen_from_other_commands(workshop: Workshop, store: Store) -> None:
    """State, progress and logs are there while it works, also for two commands at once."""
    process = workshop.start(
        *("run", "run.yaml", "--name", "watched"),
        MODELMILL_STAND_IN='{"infer-base": {"dawdle": 600}}',
    )
    wait_for(process, "infer-base started")
    wait_until(lambda: _told_steps(store) > 0)
    follower = workshop.start("logs", "watched", "-f")
    listing = workshop.start("artifacts", "ls")
    table = workshop.modelmill("status", "watched").stdout.splitlines()
    stages, models = table[1 : table.index("")], table[table.index("") + 1 :]
    assert [line.split()[1] for line in stages] == [*["committed"] * 3, "running", "waiting"]
    assert [line.split()[0] for line in models] == ["base"]
    assert models[0].split()[1].startswith("s3://modelmill/artifacts/fetch-model/")
    assert "/6000 steps" in table[4]
    assert listing.communicate()[0].splitlines()[0].split()[:2] == ["key", "stage"]

    waiting = workshop.start("wait", "watched")
    wait_for(waiting, "infer-base")
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate()
    assert (waiting.returncode, process.poll()) == (130, None)
    assert said.splitlines()[-1] == "The run goes on: modelmill wait watched"

    reading = workshop.start("logs", "watched", "-f")
    wait_for(reading, "--- ")
    reading.send_signal(signal.SIGINT)
    _, said = reading.communicate()
    assert (reading.returncode, process.poll()) == (130, None)
    assert said.splitlines()[-1] == (
        "Interrupted: this command only.  To see what goes on: modelmill status watched"
    )

    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 75
    command = "modelmill run run.yaml --name watched"
    assert said.splitlines()[-1].endswith(f"To go on from what is committed: {command}")
    followed, _ = follower.communicate()
    assert "fetch-model committed in" in followed
    assert "Asked to stop; nothing half-done was published" in followed
    row = workshop.read("status", "watched")[0]
    assert not row["is_live"]
    assert row["stages"][3]["state"] == "stopped"
    assert row["state"] == "interrupted; to go on: modelmill run FILE --name watched"
    waited = workshop.modelmill("wait", "watched")
    assert (waited.returncode, waited.stderr) == (6, f"Run 'watched': {row['state']}\n")
    assert workshop.modelmill("status", "watched", "--exit-code").returncode == 6
    for verb in ("resume", "cancel"):
        refused = workshop.modelmill(verb, "watched")
        assert refused.returncode == 7
        assert "it was run on one machine" in refused.stderr
        assert "modelmill run FILE --name watched" in refused.stderr


def test_run_that_another_command_takes_over_is_not_done(workshop: Workshop) -> None:
    """A shell goes on at 0; here nothing was made, and who waits is told for what."""
    first = workshop.start(
        *("run", "run.yaml", "--name", "taken", "-o", "json"),
        MODELMILL_STAND_IN='{"infer-base": {"dawdle": 600}}',
    )
    wait_for(first, "infer-base started")
    second = workshop.modelmill("run", "run.yaml", "--name", "taken", "--set", "seed=7")
    _, said = first.communicate()
    assert (second.returncode, first.returncode) == (0, 75)
    assert "A newer conductor drives taken now.  To wait for it: modelmill wait taken" in said
    assert workshop.read("status", "taken")[0]["state"] == "done"


def test_status_says_what_was_removed_and_how_it_is_made_again(workshop: Workshop) -> None:
    """Nobody drives the run: to say that it waits would have somebody wait."""
    assert workshop.modelmill("run", "run.yaml", "--name", "left").returncode == 0
    *_, infer, _ = workshop.read("status", "left")[0]["stages"]
    assert workshop.modelmill("artifacts", "rm", infer["key"], "--yes").returncode == 0
    *_, infer, report = workshop.read("status", "left")[0]["stages"]
    assert (infer["state"], report["state"]) == ("removed", "committed")
    assert infer["message"] == "made again by: modelmill run FILE --name left"


def _told_steps(store: Store) -> int:
    progress = run_row(store, "watched").stages[3].progress
    return 0 if progress is None or progress.unit != "steps" else progress.done


def test_run_that_is_committed_starts_nothing(workshop: Workshop) -> None:
    """It says what came out once more, and the report can be fetched at any time."""
    first = workshop.modelmill("run", "run.yaml", "--name", "whole")
    assert first.returncode == 0, first.stderr
    again = workshop.modelmill("run", "run.yaml", "--name", "whole")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "started" not in again.stderr
    rows = workshop.modelmill("status").stdout.splitlines()
    assert next(line.split()[1:3] for line in rows if line.startswith("whole")) == ["done", "5/5"]
    for more in ((), ("-f",)):
        refused = workshop.modelmill("logs", "whole", "infer-bas", *more)
        assert refused.returncode == 7
        assert "infer-bas: no such stage; known: fetch-model, " in refused.stderr
        assert "infer-base, report" in refused.stderr
    for verb, code in (("report", 66), ("status", 5), ("wait", 5)):
        refused = workshop.modelmill(verb, "BAD/../Name")
        assert refused.returncode == code
        assert refused.stderr.startswith("There is no run 'BAD/../Name'\n")
        assert "fix: choose from: " in refused.stderr
    report = workshop.read("report", "whole")
    assert {stage["status"] for stage in report["stages"]} <= {"done", "adopted"}


@pytest.mark.parametrize(("nll", "code", "outcome"), [(1.001, 0, "passed"), (9.0, 79, "failed")])
def test_gate_decides_the_exit_code_of_a_run_that_finished(
    workshop: Workshop, nll: float, code: int, outcome: str
) -> None:
    """A gated model that is measurably worse ends with 79, and the report is there."""
    run = f"gate-{outcome}"
    workshop.write_run("gated.yaml", more=GATED)
    ended = workshop.modelmill(
        *("run", "gated.yaml", "--name", run, "-o", "json"),
        *("--set", f"quantize=[{{method: bitsandbytes, double_quant: {json.dumps(code == 0)}}}]"),
        MODELMILL_STAND_IN=json.dumps({"infer-nf4": {"nll": nll}}),
    )
    assert ended.returncode == code, ended.stderr
    report = json.loads(ended.stdout)
    assert report["gate"]["outcome"] == outcome
    # A folder that its pages cannot be written to changes nothing of that.
    (workshop.folder / "reports" / f"{run}-again").write_text("in the way")
    again = workshop.modelmill(
        *("run", "gated.yaml", "--name", f"{run}-again", "-o", "json"),
        *("--set", f"quantize=[{{method: bitsandbytes, double_quant: {json.dumps(code == 0)}}}]"),
    )
    assert again.returncode == (code or 77)
    assert json.loads(again.stdout)["gate"]["outcome"] == outcome
    assert f"modelmill report {run}-again --folder ELSEWHERE" in again.stderr


def test_run_on_a_terminal_is_told_in_lines_where_it_is_read_aloud(workshop: Workshop) -> None:
    """No bar, no colour and no moving cursor; the same run otherwise shows bars."""
    write_rows(workshop.folder / "aloud.jsonl", 8)
    run = (sys.executable, "-m", "modelmill", "run", "run.yaml", "--set", "data.test=aloud.jsonl")
    code, told = on_a_terminal([*run, "--name", "aloud", "-o", "plain"], workshop.folder, {})
    assert code == 0, told
    assert ESCAPE not in told
    assert b"infer-base committed" in told
    assert b"\r\nmodel: base\r\n" in told
    _, dumb = on_a_terminal([*run, "--name", "dumb"], workshop.folder, {"TERM": "dumb"})
    assert ESCAPE not in dumb
    assert b"fetch-test adopted from run aloud" in dumb
    _, shown = on_a_terminal([*run, "--name", "bars"], workshop.folder, {})
    assert ESCAPE in shown


def test_single_writer_runs_on_a_store_without_conditions(workshop: Workshop, store: Store) -> None:
    """Such a store is refused by name, unless nobody else writes to it."""
    proxy = Proxy(os.environ)
    proxy.always("PutObject", "no condition")
    words = ("run", "run.yaml", "--name", "single", "--store", f"{store.url}/single")
    try:
        refused = workshop.modelmill(*words, AWS_ENDPOINT_URL_S3=proxy.url)
        assert refused.returncode == 74
        assert "ignores the condition of a write" in refused.stderr
        assert "--single-writer" in refused.stderr

        done = workshop.modelmill(*words, "--single-writer", AWS_ENDPOINT_URL_S3=proxy.url)
        assert done.returncode == 0, done.stderr
        listed = workshop.read("status", "--store", f"{store.url}/single", "single")
        assert listed[0]["state"] == "done"
    finally:
        proxy.close()
