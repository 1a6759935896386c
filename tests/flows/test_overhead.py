"""`benchmarks/overhead.py`: the plain script and KDQ's recipe ask for the same work, and the page tells it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kdq_core.reading.checks import load_recipe
from kdq_core.reading.studies import load
from kdq_core.recipe.spec import FitSpec
from kdq_core.training.fit import learning_rate, make_optimizer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_plain_script_has_the_settings_of_the_recipe(tmp_path: Path) -> None:
    import overhead
    import overhead_plain as plain

    _, _, text, *_ = overhead.kdq(tmp_path, "small", (4, 8), 3)
    recipe = load_recipe(Path(text))
    assert recipe.seed == 3
    assert recipe.workload.options["model"] == f"{overhead.PLAIN}:small_student"
    for spec in (recipe.teacher.fit, recipe.distill.fit):
        assert (spec.optimizer, spec.learning_rate, spec.weight_decay) == ("adamw", plain.RATE, plain.DECAY)
        assert (spec.batch_size, spec.warmup, spec.schedule, spec.clip_norm) == (
            plain.BATCH, plain.WARMUP, "cosine", None
        )  # fmt: skip
    assert [plain.rate(step, 90) for step in range(90)] == pytest.approx(
        [learning_rate(FitSpec(), step, 90) for step in range(90)]
    )
    groups = make_optimizer(plain.small_student(), FitSpec()).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(4, plain.DECAY), (10, 0.0)]
    (distiller,) = recipe.distill.losses or (recipe.distill,)
    assert distiller.use == "logit-kd"
    from kdq_distillers.logit_kd import LogitKd

    assert (LogitKd().alpha, LogitKd().temperature) == (plain.ALPHA, plain.TEMPERATURE)


def test_the_matrix_has_a_thousand_branches(tmp_path: Path) -> None:
    import overhead

    file = tmp_path / "matrix.yaml"
    digits = (BENCHMARKS.parent / "recipes" / "digits.yaml").read_text()
    file.write_text(digits + overhead.MATRIX.format(seeds=[0]))
    study: Any = load(file)
    assert len(study.branches) * 100 == 1000


def test_the_page_has_the_ratio_with_its_interval() -> None:
    import overhead

    both = {"size": "small", "epochs": (3, 6), "plain_top1": 0.9, "kdq_top1": 0.91, "step_ms": [20.0, 8.0]}
    turns = [both | {"plain": 100.0, "kdq": 101.0 + more} for more in (0.0, 1.0, -1.0)]
    mean, low, high = overhead.interval([one["kdq"] / one["plain"] for one in turns])
    assert mean == pytest.approx(1.01, abs=1e-4)
    assert (low, high) == pytest.approx((0.9853, 1.0353), abs=1e-3)
    text = overhead.page(turns, {"kdq run, again": [1.0, 2.0, 3.0]}, 2)
    said = f"KDQ takes 1.010 times as long as the plain script (95 % interval {low:.3f} to {high:.3f}), "
    assert f"- small nets, steps of 20 and 8 ms: {said}1.0 s more." in text
    assert "| small | 1 | 3 + 6 | 100.0 | 101.0 | 1.010 | 0.900 | 0.910 |" in text
    assert "| `kdq run, again` | 2.00 | 1.00 | 3.00 |" in text


def test_in_slices_each_command_is_stopped_while_the_other_runs_with_all_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that works for 0.6 s in a process below it takes as long as one that works itself."""
    import overhead

    monkeypatch.setattr(overhead, "SLICE", 0.2)
    work = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.6: pass\nprint('{\"done\": 1}')"
    below = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}], check=True)"
    commands = [[sys.executable, "-c", code] for code in (work, below)]
    (first, told), (second, _) = overhead.in_slices(commands, tmp_path / "home", 1)
    assert told == {"done": 1}
    assert 0.6 <= first < 2
    assert 0.6 <= second < 2
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        overhead.in_slices([[sys.executable, "-c", "1 / 0"]], tmp_path / "home", 1)


def test_turns_of_this_machine_are_not_made_again(tmp_path: Path) -> None:
    import overhead

    here = overhead.machine(overhead.PACKAGES)
    file, turns = tmp_path / "overhead.json", [{"size": "small"}]
    assert overhead.known(file, 2) == []
    file.write_text(json.dumps({"machine": here, "threads": 2, "turns": turns}))
    assert overhead.known(file, 2) == turns
    assert overhead.known(file, 1) == []
    file.write_text(json.dumps({"machine": "Machine: another", "threads": 2, "turns": turns}))
    assert overhead.known(file, 2) == []
