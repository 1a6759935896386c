"""Watching a run while it trains."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import RecipeError
from kdq_flows.report import kept
from kdq_flows.report import live as live_module
from kdq_flows.report.live import Live


def point(epoch: int, top1: float) -> dict[str, Any]:
    return {"epoch": epoch, "values": {"validation/top1": top1, "train/loss": 1 - top1}}


def test_the_page_shows_the_curves_of_all_stages_so_far_and_loads_itself_anew(view_of: Any) -> None:
    plan, said = view_of().plan, []
    live = Live(plan, "x-1", said.append)
    page = kept.folder(plan.site, "x-1") / kept.PAGE
    live.epoch("train_teacher", point(1, 0.5))
    live._due = float("-inf")
    live.epoch("distill", point(1, 0.25))
    html = page.read_text()
    assert '<meta http-equiv="refresh" content="3">' in html
    assert "validation/top1: teacher ends at 50%; float student ends at 25%." in html
    assert said == [f"curves while it trains: {page}"]
    live.epoch("distill", point(2, 0.75))
    assert page.read_text() == html  # at most once in three seconds


def test_a_page_that_takes_long_is_written_seldom_but_in_time(view_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = [0.0], []

    def slowly(*_: Any) -> None:
        clock[0] += 0.03
        written.append(clock[0])

    monkeypatch.setattr(live_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(kept, "write", slowly)
    live = Live(view_of().plan, "x-1", lambda _text: None)
    for epoch in range(1, 60):
        live.epoch("distill", point(epoch, 0.5))
        clock[0] += 1
    assert len(written) == 9  # 0.03 s at 0.5 % of the time are 6 s, so each seventh of these epochs
    monkeypatch.setattr(kept, "write", lambda *_: clock.__setitem__(0, clock[0] + 60) or written.append(clock[0]))
    for epoch in range(60, 120):
        live.epoch("distill", point(epoch, 0.5))
        clock[0] += 1
    assert len(written) == 9 + 4


def test_a_page_that_cannot_be_written_is_told_once_and_stops_nothing(view_of: Any) -> None:
    plan, said = view_of().plan, []
    plan.site.home.mkdir(parents=True)
    (plan.site.home / "runs").write_text("a file where the folder should be")
    live = Live(plan, "x-1", said.append)
    for epoch in (1, 2):
        live._due = float("-inf")
        live.epoch("distill", point(epoch, 0.5))
    assert len(said) == 1
    assert said[0].startswith("the curves cannot be shown while the run trains: ")


def test_event_files_without_tensorboard_are_an_error_that_says_how_to_install_it(
    view_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = view_of().plan
    site = plan.site.model_copy(update={"tensorboard": tmp_path})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(RecipeError) as caught:
        Live(plan.model_copy(update={"site": site}), "x-1", print)
    assert str(caught.value) == (
        "KDQ_TENSORBOARD asks for event files, but the package 'tensorboard' is not installed; install it with "
        "`pip install tensorboard`, or unset KDQ_TENSORBOARD"
    )


def test_each_stage_has_event_files_of_its_own(view_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys
    import types

    heard: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            self.folder = Path(folder)

        def add_scalar(self, *point: Any) -> None:
            heard.append((self.folder, *point))

        def flush(self) -> None: ...

        def close(self) -> None:
            heard.append((self.folder, "closed"))

    stands_in = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stands_in)  # type: ignore[arg-type]
    plan = view_of().plan
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: True)
    site = plan.site.model_copy(update={"tensorboard": tmp_path})
    live = Live(plan.model_copy(update={"site": site}), "x-1", lambda _text: None)
    live.epoch("distill", point(1, 0.5))
    live.close()
    folder = tmp_path / "x-1" / "distill"
    assert heard == [(folder, "validation/top1", 0.5, 1), (folder, "train/loss", 0.5, 1), (folder, "closed")]
