"""What a run shows while it lasts: one bar a stage."""

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from kdq_core.work.fitting import _note
from kdq_flows.cli import common, run
from kdq_flows.cli.run import Progressing
from kdq_flows.run import pace
from kdq_flows.run.pace import Pace


@pytest.mark.parametrize("bars", [True, False])
def test_each_stage_has_one_bar_or_one_line(bars: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(common, "console", lambda **_: Console(file=screen, force_terminal=bars, width=120))
    shown = Progressing(bars=bars)
    with shown.live():
        shown.stage_started("distill")
        shown.progress({"stage": "distill", "done": 3, "total": 4, "note": "loss 0.1"})
        shown.stage_ended("distill", "ran", 1.25)
        shown.stage_ended("register", "cached", 0.0)
    if bars:
        assert shown._progress is not None
        assert [(t.description, t.fields["note"], t.finished) for t in shown._progress.tasks] == [
            ("distill", "ran", True), ("register", "cached", True),
        ]  # fmt: skip
    else:
        assert screen.getvalue() == (
            "distill        starts\ndistill        ran in 1.2 s\nregister       cached in 0.0 s\n"
        )


def test_without_a_terminal_a_stage_has_a_line_for_each_tenth_or_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, clock = io.StringIO(), SimpleNamespace(now=0.0)
    monkeypatch.setattr(common, "console", lambda **_: Console(file=screen, width=120))
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: clock.now))
    shown = Progressing(bars=False)
    shown.stage_started("distill")
    for now, done in ((1, 90), (2, 95), (4, 100), (5, 400), (9, 420), (10, 550), (38, 510), (41, 515), (50, 20)):
        clock.now = now
        shown.progress({"stage": "distill", "done": done, "total": 1000, "note": f"epoch {done // 50} of 20"})
    clock.now = 69
    shown.look()
    clock.now = 72
    shown.look()
    shown.progress({"stage": "export", "done": 1, "total": 2, "note": ""})
    shown.stage_ended("distill", "ran", 73)
    clock.now = 200
    shown.look()
    assert screen.getvalue().splitlines() == [
        "distill        starts",
        "distill         10% after 4 s, about 36 s left: epoch 2 of 20",
        "distill         42% after 9 s, about 12 s left: epoch 8 of 20",
        "distill         52% after 41 s, about 3 s left: epoch 10 of 20",
        "distill          2% after 72 s, about 18 min left: epoch 0 of 20",
        "distill        ran in 73.0 s",
    ]


def test_a_bar_says_how_long_its_stage_still_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, clock = io.StringIO(), SimpleNamespace(now=0.0)
    monkeypatch.setattr(common, "console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: clock.now))
    shown = Progressing(bars=True)
    shown.stage_started("distill")
    clock.now = 30
    shown.progress({"stage": "distill", "done": 1, "total": 4, "note": "epoch 1 of 4"})
    assert shown._progress is not None
    (bar,) = shown._progress.tasks
    assert bar.fields["note"] == "epoch 1 of 4, about 90 s left"


def test_a_part_that_begins_anew_has_its_own_pace() -> None:
    one = Pace(0.0)
    one.at(1, 2, "", 100.0)
    assert one.left(100.0) == "about 2 min left"
    one.at(0, 10, "", 200.0)
    assert one.left(200.0) == ""
    one.at(5, 10, "", 210.0)
    assert (one.left(210.0), one.line(210.0)) == ("about 10 s left", " 50% after 4 min, about 10 s left")
    one.at(10, 10, "", 220.0)
    assert one.left(220.0) == ""


def test_a_stage_that_tells_nothing_has_a_line_while_the_run_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(common, "console", lambda **_: Console(file=screen, width=120))
    monkeypatch.setattr(pace, "PAUSE", 0.001)
    monkeypatch.setattr(pace, "PATIENCE", 0.002)
    shown = Progressing(bars=False)
    with shown.live():
        shown.stage_started("quantize")
        for _ in range(1000):
            time.sleep(0.005)
            if len(screen.getvalue().splitlines()) > 1:
                break
    assert screen.getvalue().splitlines()[:2] == ["quantize       starts", "quantize         0% after 0 s"]


def test_the_note_of_a_fit_names_its_epoch() -> None:
    assert [_note(done, 40, 4, 0.25) for done in (1, 10, 11, 40)] == [
        f"epoch {epoch} of 4, loss 0.250" for epoch in (1, 1, 2, 4)
    ]


def test_a_message_is_broken_between_words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(common, "console", lambda **_: Console(file=screen, width=20))
    Progressing(bars=False).message("started a server at http://127.0.0.1:4200/api; it stays up")
    assert screen.getvalue() == "started a server at\nhttp://127.0.0.1:4200/api;\nit stays up\n"
