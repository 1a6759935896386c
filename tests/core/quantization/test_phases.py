"""When ranges and batch-norm statistics stand still while a quantizer trains."""

import pytest

from kdq_core.recipe.spec import QuantizeSpec
from kdq_core.work import quantizing

STEPS = 4  # of an epoch


def phases(monkeypatch, epochs, done=0, **section):
    """What each step is told, from step `done` on: `o` ranges follow, `r` they stand still, `b` batch norm does too."""
    told = []
    monkeypatch.setattr(quantizing, "set_phase", lambda _model, **switches: told.append(switches))
    spec = QuantizeSpec.model_validate({"fit": {"epochs": epochs}, **section})
    before_step, lines = quantizing.phases(spec, None, epochs), ""
    for step in range(done, epochs * STEPS):
        before_step(step, epochs * STEPS)
        assert told[-1]["quantize"]
        lines += "o" if told[-1]["observe"] else "b" if told[-1]["freeze_batch_norm"] else "r"
    return " ".join(lines[-epochs * STEPS :][at : at + STEPS] for at in range(0, len(lines), STEPS)), len(told)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, "oorb"), (2, "oooo bbbb"), (3, "oooo oorr bbbb"), (4, "oooo oooo rrrr bbbb")],
)
def test_a_fit_of_the_default_shares_ends_in_the_last_phase(monkeypatch, epochs, expected):
    assert phases(monkeypatch, epochs) == (expected, len(set(expected) - {" "}))


def test_a_share_is_counted_in_steps(monkeypatch):
    assert phases(monkeypatch, 3, freeze_observers=0.25, freeze_batch_norm=0.5)[0] == "ooor rrbb bbbb"
    assert phases(monkeypatch, 2, freeze_observers=0, freeze_batch_norm=0)[0] == "bbbb bbbb"


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_a_late_share_keeps_the_last_epoch_and_of_a_single_one_the_last_step(monkeypatch, epochs):
    late = phases(monkeypatch, epochs, freeze_observers=0.99, freeze_batch_norm=0.99)[0]
    assert late == ("ooob" if epochs == 1 else " ".join(["oooo"] * (epochs - 1) + ["bbbb"]))


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_a_share_of_1_means_never(monkeypatch, epochs):
    assert set(phases(monkeypatch, epochs, freeze_observers=1, freeze_batch_norm=1)[0]) <= {"o", " "}
    assert "b" not in phases(monkeypatch, epochs, freeze_batch_norm=1)[0]


@pytest.mark.parametrize("done", range(12))
def test_a_fit_that_goes_on_is_in_the_phase_it_would_have_been_in(monkeypatch, done):
    whole = phases(monkeypatch, 3)[0].replace(" ", "")
    assert phases(monkeypatch, 3, done)[0].replace(" ", "") == whole[done:]


def test_the_stage_trains_through_all_phases_in_both_fits(stages_of, tiny, monkeypatch, tmp_path):
    told, real = [], quantizing.set_phase
    monkeypatch.setattr(
        quantizing, "set_phase", lambda model, **switches: (told.append(switches), real(model, **switches))
    )
    fit = {"epochs": 1, "batch_size": 48}
    run = stages_of(
        tmp_path, tiny, workload={"use": "digits"}, teacher={"fit": fit}, distill={"fit": fit},
        quantize={"use": "minmax-qat", "fit": {"epochs": 3, "batch_size": 48}, "control": True},
    )  # fmt: skip
    for stage in ("train_teacher", "cache_teacher", "distill", "quantize"):
        run.stage(stage)
    fits = [(step["observe"], step["freeze_batch_norm"]) for step in told if step["quantize"]]
    one = [(True, False), (False, False), (False, True), (False, True)]  # three phases, then what is kept
    before = [(False, True)]  # post-training alone, which the verdict tells
    assert fits == before + one * 2
