"""A stage that hangs says where every thread is and ends with a code that is tried again.

In processes of their own: what is under test ends them.
"""

import signal
import subprocess
import sys
import textwrap

from modelmill.spec.errors import DeviceFault, Retry, code_of, retry_for

PREFACE = """
import ctypes, os, signal, sys, threading, time
from modelmill.stages import hang
hang.LOOK_SECONDS, hang.ARM_SECONDS, hang.SPARE_SECONDS = 0.05, 0.1, 1
watch = hang.Hang(AFTER, 71, lambda seconds: print("hung for", round(seconds), "s", flush=True))
watch.start()
"""


def run(body: str, after: float) -> "subprocess.CompletedProcess[str]":
    """Run a body under a watch."""
    script = PREFACE.replace("AFTER", str(after)) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )


def test_hung_step_dumps_all_stacks_and_exits_71() -> None:
    """Not only of the thread that looks."""
    ended = run(
        """
        def step_that_never_ends(): time.sleep(600)
        def other_thread(): time.sleep(600)
        threading.Thread(target=other_thread, daemon=True).start()
        step_that_never_ends()
        """,
        after=0.5,
    )
    assert ended.returncode == DeviceFault.exit_code
    assert "hung for" in ended.stdout
    assert "in step_that_never_ends" in ended.stderr
    assert "in other_thread" in ended.stderr


def test_native_code_that_hangs_with_the_interpreters_lock_is_ended_by_the_kernel() -> None:
    """No thread of ours runs then; the alarm counts as a fault of the place, tried again."""
    ended = run(
        """
        def native_call(): ctypes.PyDLL(None).sleep(600)
        native_call()
        """,
        after=1,
    )
    assert ended.returncode == -signal.SIGALRM
    assert "in native_call" in ended.stderr
    for code in (ended.returncode, 128 + signal.SIGALRM):
        assert code_of(code) == DeviceFault.exit_code
        assert retry_for(code) is Retry.COUNTED


def test_stage_that_shows_life_is_left_alone() -> None:
    """However long it takes."""
    ended = run(
        """
        for _ in range(30):
            watch.live()
            time.sleep(0.1)
        watch.stop()
        """,
        after=1,
    )
    assert (ended.returncode, ended.stdout) == (0, "")


def test_process_that_was_stopped_itself_has_not_hung() -> None:
    """A laptop that sleeps, or a paused container, shows no life and has none to show."""
    body = "print('up', flush=True)\nsys.stdin.readline()\nwatch.stop()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", PREFACE.replace("AFTER", "2").replace("0.1, 1", "0.1, 60") + body],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGSTOP)
    # As long as it takes another process to hang.
    assert run("time.sleep(600)", after=2).returncode == DeviceFault.exit_code
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate("\n")
    assert (process.returncode, out) == (0, "")
