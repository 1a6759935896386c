"""SIGTERM and Ctrl-C: what a process does at the first, at the second, and if it hangs."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kdq_flows.run.signals import interrupted_in, leaving


def test_an_interrupted_run_names_its_stages() -> None:
    assert interrupted_in(["distill"]) == "interrupted in distill; run the same command to resume"
    assert interrupted_in(["distill@a", "quantize@b"]) == (
        "interrupted in distill@a and quantize@b; run the same command to resume"
    )
    assert interrupted_in([]) == "interrupted; run the same command to resume"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_interrupts_the_body_and_afterwards_signals_mean_what_they_meant(number: int) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]

    def interrupted() -> None:
        with leaving(), leaving():
            os.kill(os.getpid(), number)

    for _ in range(2):  # each run anew
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


BODY = """
import os, signal, sys, time
from kdq_flows.run import signals
signals.LEAVE_SECONDS = float(sys.argv[1])
with signals.leaving(lambda: print("last words")):
    try:
        with signals.leaving():  # as within a flow, which Prefect gives a handler of its own
            os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        print("keeps its state", flush=True)
        if len(sys.argv) > 2:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
"""


@pytest.mark.parametrize("words", [["0.3"], ["60", "a second one"]])
def test_a_process_that_hangs_after_a_signal_ends_in_time_and_at_a_second_one_at_once(words: list[str]) -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", BODY, *words], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (130, "keeps its state\nlast words\n", "")
    assert time.monotonic() - began < 10
