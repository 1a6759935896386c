"""What a run shows while it lasts: one bar a stage."""

import io

import pytest
from rich.console import Console

from kdq_flows.cli import common
from kdq_flows.cli.run import Progressing


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
        assert screen.getvalue() == "distill        ran in 1.2 s\nregister       cached in 0.0 s\n"


def test_a_message_is_broken_between_words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(common, "console", lambda **_: Console(file=screen, width=20))
    Progressing(bars=False).message("started a server at http://127.0.0.1:4200/api; it stays up")
    assert screen.getvalue() == "started a server at\nhttp://127.0.0.1:4200/api;\nit stays up\n"
