"""The evaluator `parity`: flips, exact ties, LSBs, and a simulation that must not move."""

import numpy as np
import pytest
import torch
from torch import fx, nn

from kdq_core.api import Departure, StageError
from kdq_evaluators.parity import Parity
from kdq_evaluators.simulated import count_flips, first_departure, state_hash

ROWS = np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 2, 0]], dtype=np.float32)


class Simulation(nn.Module):
    """Answers with its input plus a constant table, as far as the batch goes."""

    def __init__(self, added=0.0):
        super().__init__()
        self.register_buffer("added", torch.as_tensor(added, dtype=torch.float32), persistent=False)

    def forward(self, x):
        return x + self.added


def measured(subject, table, file, scales=(0.5,), simulation=None, rows=ROWS):
    candidate = subject("int8", file, simulation=simulation or Simulation(), output_scales=scales)
    return {m.name: m.value for m in Parity().evaluate(candidate, subject("student"), table(rows))}


def test_equal_outputs_have_no_flip_and_no_difference(subject, table):
    found = measured(subject, table, lambda x: x)
    assert found == {
        "parity_flips": 0,
        "parity_ties": 0,
        "parity_agreement": 1.0,
        "parity_p50_lsb": 0,
        "parity_p99_lsb": 0,
        "parity_max_lsb": 0,
    }


def test_a_float_file_is_compared_with_its_model_in_torch(subject, table):
    candidate = subject("student", lambda x: x[:, ::-1] * np.float32(0.9), simulation=Simulation())
    found = {m.name: m for m in Parity().evaluate(candidate, candidate, table(ROWS))}
    assert sorted(found) == [
        "parity_agreement", "parity_flips", "parity_max_lsb", "parity_p50_lsb", "parity_p99_lsb", "parity_ties",
    ]  # fmt: skip
    assert found["parity_flips"].value == 2
    assert found["parity_flips"].note == "the runtime computes an operator of this model in another way than torch"
    assert found["parity_max_lsb"].value == pytest.approx(2 / (2 / 255), rel=0.2)
    assert Parity().evaluate(subject("teacher", lambda x: x), candidate, table(ROWS)) == ()


def test_a_flip_is_counted(subject, table):
    found = measured(subject, table, lambda x: x[:, ::-1])
    # Row 2 keeps its class; in row 4 the file picks class 1, the simulation class 0, which tie in the simulation.
    assert found["parity_flips"] == 2
    assert found["parity_ties"] == 1
    assert found["parity_agreement"] == 0.25


def test_a_flip_between_classes_that_tie_exactly_in_either_output_is_a_tie():
    clear, tie = [3.0, 1.0, 0.0], [2.0, 2.0, 0.0]
    turned = [1.0, 3.0, 0.0]
    assert count_flips(np.array([turned]), np.array([clear])) == (1, 0)
    assert count_flips(np.array([turned]), np.array([tie])) == (0, 1)
    assert count_flips(np.array([tie]), np.array([turned])) == (0, 1)
    assert count_flips(np.array([tie]), np.array([tie])) == (0, 0)


def test_a_flip_is_counted_at_each_position_and_numbers_have_none(subject, table):
    positions = np.stack([ROWS, ROWS[::-1]], 1)  # [4 samples, 2 positions, 3 classes]
    found = measured(subject, table, lambda x: x + np.array([[0, 0, 0], [9, 0, 0]], dtype=np.float32), rows=positions)
    assert found["parity_flips"] == 2  # of the second positions, two have another class than 0; one of them ties
    assert found["parity_ties"] == 0
    assert found["parity_agreement"] == 0.75
    numbers = measured(subject, table, lambda x: x + 1, rows=ROWS[:, 0])
    assert (numbers["parity_flips"], numbers["parity_p50_lsb"]) == (0, 2)


def test_a_tie_of_other_classes_excuses_no_flip():
    file, simulated = np.array([[0.0, 0.0, 5.0, 1.0]]), np.array([[0.0, 0.0, 1.0, 5.0]])
    assert count_flips(file, simulated) == (1, 0)


def test_differences_are_in_steps_of_the_output_scale(subject, table):
    def one_step_off_in_one_place(x):
        y = x.copy()
        y[0, 0] += 1.0
        return y

    found = measured(subject, table, one_step_off_in_one_place, scales=(0.25,))
    assert (found["parity_p50_lsb"], found["parity_p99_lsb"], found["parity_max_lsb"]) == (0, 4, 4)


def test_float_rounding_of_the_same_integers_is_no_difference(subject, table):
    scale = 0.0372
    rows = (np.random.default_rng(0).integers(-128, 128, (50, 4)) * np.float64(scale)).astype(np.float32)
    found = measured(subject, table, lambda x: np.nextafter(x, np.inf), scales=(scale,), rows=rows)
    assert found["parity_max_lsb"] == 0


def test_a_float_output_is_measured_in_255ths_of_its_range(subject, table):
    found = measured(subject, table, lambda x: x + np.float32(2 / 255), scales=(None,))
    assert found["parity_p50_lsb"] == pytest.approx(1, abs=1e-3)


def test_a_float_file_has_no_parity(subject, table):
    student = subject("student", lambda x: x)
    assert Parity().evaluate(student, student, table(ROWS)) == ()


def test_a_simulation_that_changes_while_it_is_evaluated_is_refused(subject, table):
    class Observing(Simulation):
        def forward(self, x):
            self.added += 1
            return x

    with pytest.raises(StageError) as caught:
        measured(subject, table, lambda x: x, simulation=Observing())
    assert str(caught.value) == (
        "evaluator 'parity' found that the simulation changes while it is evaluated; "
        "switch its observers off and its batch norms to evaluation first"
    )


def test_the_hash_sees_buffers_that_are_not_saved_and_low_precision():
    model = Simulation([1.0, 2.0])
    first = state_hash(model)
    model.added[1] = 3
    assert state_hash(model) != first
    assert state_hash(model.to(torch.bfloat16)) != first


def test_another_output_shape_is_refused(subject, table):
    with pytest.raises(StageError) as caught:
        measured(subject, table, lambda x: x[:, :2])
    assert str(caught.value) == (
        "evaluator 'parity' compares outputs of one shape, but the file gives (4, 2) and its simulation (4, 3); "
        "export the model that is simulated"
    )


def test_the_trained_model_is_a_side_of_its_own(subject, table):
    candidate = subject("int8", lambda x: x, simulation=Simulation(), prepared=Simulation(0.25), output_scales=(0.5,))
    batches = table(ROWS, labels=[2, 0, 0, 0])
    found = {m.name: m.value for m in Parity().evaluate(candidate, subject("student"), batches)}
    assert set(found) == set(Parity.metrics)
    assert (found["parity_max_lsb"], found["parity_prepared_p50_lsb"], found["parity_prepared_max_lsb"]) == (
        0,
        0.5,
        0.5,
    )
    assert (found["parity_flips"], found["parity_prepared_flips"]) == (0, 0)
    assert (found["top1_converted"], found["top1_prepared"]) == (0.75, 0.75)


def test_a_sample_for_which_the_simulation_gives_nan_and_the_file_numbers_is_a_flip_and_named(subject, table):
    added = np.zeros((4, 3))
    added[2, 1] = np.nan
    prepared = Simulation(added)
    candidate = subject("int8", lambda x: x, simulation=Simulation(), prepared=prepared, output_scales=(0.5,))
    found = {m.name: m for m in Parity().evaluate(candidate, subject("student"), table(ROWS))}
    assert (found["parity_flips"].value, found["parity_prepared_flips"].value) == (0, 1)
    assert (found["parity_prepared_agreement"].value, found["parity_prepared_max_lsb"].value) == (0.75, 0)
    assert found["parity_prepared_flips"].note == (
        "the prepared model gives NaN or infinity for 1 of 4 test samples, first for sample 2; let the model answer "
        "for such a sample, for instance a sentence whose mask is all zero, or drop it from the data; the file gives "
        "numbers there"
    )
    blind = measured(subject, table, lambda x: x, simulation=Simulation(np.full((4, 3), np.nan)))
    assert blind["parity_flips"] == 4
    assert np.isnan(blind["parity_p99_lsb"])


def test_a_breach_carries_the_departures_of_the_file(subject, table, monkeypatch):
    asked = []

    def departures(self, path, simulation, inputs, *, threads):
        asked.append(len(inputs[0]))
        far = Departure(path="head", operator="linear", share=0.5, most=9)
        return (Departure(path="stem", operator="conv2d", share=0.0125, most=1), far) if len(asked) == 2 else ()

    rows = np.repeat(ROWS, 4, axis=0)
    candidate = subject("int8", lambda x: x[:, ::-1], simulation=Simulation(), output_scales=(0.5,))
    monkeypatch.setattr(type(candidate.target), "departures", departures)
    notes = {m.name: m.note for m in Parity().evaluate(candidate, subject("student"), table(rows))}
    text = (
        "file and converted model first differ at stem (conv2d): 1.25% of its values, by up to 1 LSB; "
        "the most at head: 9 LSB"
    )
    assert notes == {
        "parity_flips": text, "parity_ties": "", "parity_agreement": "", "parity_p50_lsb": "", "parity_p99_lsb": text,
        "parity_max_lsb": "",
    }  # fmt: skip
    assert asked == [7, 7]


def test_a_second_output_has_differences_of_its_own(subject, table):
    class Two(Simulation):
        def forward(self, x):
            return x, x + 1

    candidate = subject("int8", lambda x: x, simulation=Two(), output_scales=(0.5, 0.5))
    monkey = type(candidate.target).session

    def both(self, path, *, threads):
        session = monkey(self, path, threads=threads)
        run = session.run
        session.run = lambda inputs: (*run(inputs), *run(inputs))
        return session

    type(candidate.target).session = both
    try:
        found = {m.name: m.value for m in Parity().evaluate(candidate, subject("student"), table(ROWS))}
    finally:
        type(candidate.target).session = monkey
    assert (found["parity_max_lsb"], found["parity_p50_lsb/output_1"]) == (0, 2)


@pytest.mark.parametrize(("converting", "text"), [(False, "file and converted"), (True, "converted and prepared")])
def test_what_conversion_changes_is_not_laid_to_the_file(subject, table, monkeypatch, converting, text):
    away = (Departure(path="stem", operator="conv2d", share=0.5, most=1),)
    graph = fx.symbolic_trace(nn.Identity())
    candidate = subject("int8", lambda x: x, simulation=graph, prepared=graph)
    monkeypatch.setattr(type(candidate.target), "departures", lambda *_, **__: away)
    monkeypatch.setattr("kdq_core.quantization.departures.departures_of_conversion", lambda *_: away)
    note = first_departure(candidate, table(ROWS), converting=converting)
    assert note == f"{text} model first differ at stem (conv2d): 50.00% of its values, by up to 1 LSB"
