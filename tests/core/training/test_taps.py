"""Reading modules by path, in plain models and in captured graphs."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.distillation.pairs import Pair, automatic, resolved
from kdq_core.errors import RecipeError
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert
from kdq_core.quantization.placing import placed
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.recipe.spec import QuantizeSpec
from kdq_core.recipe.teacher import NormalizeSpec
from kdq_core.teachers.members import Ensemble, Normalized
from kdq_core.teachers.onnx_teacher import OnnxTeacher
from kdq_core.testing.toys import TOYS
from kdq_core.training.taps import Layer, graph_forward, layers, matching, tapping
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_workloads.digits_models import DigitsResNet

IMAGES = (torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Odd(nn.Module):
    """A module that gives a tuple, one that is never called, one that hands on, and one called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.idle = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 4)
        self.same, self.twice, self.relu = nn.Identity(), nn.Linear(4, 4), nn.ReLU(inplace=True)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x):
        x = self.same(self.lstm(x)[0])
        return self.head(self.drop(self.relu(self.twice(self.twice(x)))).mean(1))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return DigitsResNet(4, (8, 16))


@pytest.fixture(scope="module")
def prepared(resnet):
    graph = capture(resnet, IMAGES)
    places = placed(graph, OnnxRuntimeCpu(), MinMaxQat(), QuantizeSpec()).places
    return prepare(graph, places, MinMaxQat())


def test_a_tap_gives_what_the_module_gives(resnet):
    seen_by_hand = F.relu(resnet.bn(resnet.conv(*IMAGES)))
    with tapping(resnet, ["blocks.0", "bn"], "student") as seen:
        resnet(*IMAGES)
    assert torch.equal(seen["blocks.0"], resnet.blocks[0](seen_by_hand))
    assert not resnet.bn._forward_hooks


def test_of_a_module_called_twice_the_last_output_counts():
    model, x = Odd().eval(), torch.randn(2, 3, 4)
    with tapping(model, ["twice"], "student") as seen:
        model(x)
    y = model.twice(model.lstm(x)[0])
    assert torch.equal(seen["twice"], model.twice(y))  # not what the relu behind it makes of it in place


class InPlace(nn.Module):
    """What a module gave is changed in place behind it: by an addition, and by a relu."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = self.second(self.relu(self.first(x)))
        y += x
        return self.head(self.relu(y))


def test_a_tap_gives_what_a_module_gave_before_others_changed_it_in_place():
    model, x = InPlace().eval(), torch.randn(5, 4)
    with tapping(model, ["first", "second"], "student") as seen:
        model(x)
    assert torch.equal(seen["first"], model.first(x))
    assert torch.equal(seen["second"], model.second(F.relu(model.first(x))))
    graph = capture(model, (x,)).eval()
    _, values = graph_forward(graph, ["first", "second"])(graph, x)
    for ours, theirs in zip(values, seen.values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    seen["first"].sum().backward()
    assert model.first.weight.grad.any()


def test_a_tap_that_gives_a_tuple_is_named():
    model = Odd()
    with pytest.raises(RecipeError) as caught, tapping(model, ["lstm"], "teacher"):
        model(torch.randn(2, 3, 4))
    assert str(caught.value) == (
        "tap 'lstm' of the teacher gives a 'tuple', not a tensor; tap a module that gives one tensor, such as the "
        "layer behind it, or let the module give one"
    )


def test_a_tap_that_is_never_called_is_named():
    model = Odd()
    with pytest.raises(RecipeError) as caught, tapping(model, ["idle"], "student"):
        model(torch.randn(2, 3, 4))
    assert str(caught.value) == "tap 'idle' of the student is never called by the model; tap a module that is"


def test_a_path_that_does_not_exist_gives_the_nearest_names(resnet):
    with pytest.raises(RecipeError) as caught:
        matching(resnet, "blocks.O.conv1", "student")
    assert str(caught.value) == (
        "no module of the student (DigitsResNet) matches the tap 'blocks.O.conv1'; nearest: 'blocks.1.conv1', "
        "'blocks.0.conv1', 'blocks.1.conv2'"
    )
    with pytest.raises(RecipeError, match="nearest: 'conv', 'bn', 'blocks'"):
        matching(resnet, "*.*.*.*.*", "student")


def test_a_star_stays_within_one_step_of_the_path(resnet):
    assert matching(resnet, "blocks.*", "student") == ("blocks.0", "blocks.1")
    assert matching(resnet, "blocks.*.conv?", "student") == (
        "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2",
    )  # fmt: skip


def test_layers_are_those_that_give_a_tensor_of_their_own():
    model = Odd().train()
    found = layers(model, lambda: model(torch.randn(2, 3, 4)))
    assert [layer.path for layer in found] == ["twice", "relu"]
    assert found[-1] == Layer("relu", (3, 4))
    assert model.training


@pytest.mark.parametrize("path", ["bn", "blocks.0", "blocks.1.bn2", "blocks"])
def test_a_captured_graph_gives_what_the_module_gives(resnet, path):
    graph = capture(resnet, IMAGES).eval()
    source, names = graph.code, list(graph.state_dict())
    given, (value,) = graph_forward(graph, [path])(graph, *IMAGES)
    resnet.eval()
    with tapping(resnet, [path], "student") as seen:
        expected = resnet(*IMAGES)
    assert torch.allclose(given, expected, atol=1e-6)
    assert torch.allclose(value, seen[path], atol=1e-6)
    assert (graph.code, list(graph.state_dict())) == (source, names)


class Again(nn.Module):
    """A layer that is called twice, with another operator between."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(F.relu(self.layer(x))))


def test_in_a_graph_too_the_last_output_of_a_module_called_twice_counts():
    model, x = Again(), torch.randn(3, 4)
    graph = capture(model, (x,))
    _, (value,) = graph_forward(graph, ["layer"])(graph, x)
    assert torch.allclose(value, model.layer(F.relu(model.layer(x))), atol=1e-6)


class Shared(nn.Module):
    """One layer under three paths, as ALBERT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Tanh())] * 3), nn.Linear(4, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_of_a_module_under_several_paths_the_last_call_counts_in_model_and_graph():
    model, x = Shared(), torch.randn(3, 4)
    graph = capture(model, (x,))
    for path in ("layers.0", "layers.0.1", "layers.2.0"):
        with tapping(model, [path], "student") as seen:
            model(x)
        _, (value,) = graph_forward(graph, [path], model)(graph, x)
        assert torch.allclose(value, seen[path], atol=1e-6), path


def test_in_quantization_aware_training_a_tap_gives_rounded_values_and_a_gradient(prepared):
    model = copy.deepcopy(prepared)
    set_phase(model, observe=True, quantize=True, freeze_batch_norm=False)
    forward = graph_forward(model, ["blocks.0"])
    _, (value,) = forward(model, *IMAGES)
    assert len(value.unique()) <= 256
    assert float(value.detach().min()) >= 0  # behind the relu
    value.square().sum().backward()
    assert model.get_parameter("conv.weight").grad.any()
    assert model.get_parameter("blocks.1.conv1.weight").grad is None


def test_a_tap_leaves_what_is_exported_as_it_is(prepared):
    tapped, other = copy.deepcopy(prepared), copy.deepcopy(prepared)
    forward = graph_forward(tapped, ["blocks.0", "blocks.1"])
    for model, run in ((tapped, lambda x: forward(tapped, x)[0]), (other, other)):
        set_phase(model, observe=True, quantize=False, freeze_batch_norm=True)
        with torch.no_grad():
            run(*IMAGES)
    ours, theirs = convert(tapped), convert(other)
    assert ours.code == theirs.code
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


@pytest.mark.parametrize("toy", [t for t in TOYS if "ru" not in t.name and "lstm" not in t.name], ids=lambda t: t.name)
def test_the_automatic_taps_of_every_family_are_found_in_its_graph(toy):
    torch.manual_seed(0)
    model, inputs = toy.model().eval(), toy.inputs(4, torch.Generator().manual_seed(1))
    pairs = automatic(*(layers(model, lambda: model(*inputs)),) * 2, "fitnet")
    paths = [pair.student for pair in pairs]
    graph = capture(model, inputs).eval()
    given, values = graph_forward(graph, paths)(graph, *inputs)
    with tapping(model, paths, "student") as seen, torch.no_grad():
        expected = model(*inputs)
    assert torch.allclose(given, expected, atol=1e-5)
    for path, value in zip(paths, values, strict=True):
        assert torch.allclose(value, seen[path], atol=1e-5), path


@pytest.mark.parametrize("toy", [t for t in TOYS if "ru" not in t.name and "lstm" not in t.name], ids=lambda t: t.name)
def test_a_tap_means_the_same_in_the_model_and_in_quantization_aware_training(toy):
    """But for rounding, which is off here: a relu that was merged into a fake-quantizer is not the module's."""
    torch.manual_seed(0)
    model, inputs = toy.model().eval(), toy.inputs(4, torch.Generator().manual_seed(1))
    paths = [layer.path for layer in layers(model, lambda: model(*inputs))]
    graph = capture(model, inputs)
    ready = prepare(graph, placed(graph, OnnxRuntimeCpu(), MinMaxQat(), QuantizeSpec()).places, MinMaxQat()).eval()
    set_phase(ready, observe=False, quantize=False, freeze_batch_norm=True)
    with tapping(model, paths, "student") as seen, torch.no_grad():
        model(*inputs)
    _, values = graph_forward(ready, paths)(ready, *inputs)
    for path, value in zip(paths, values, strict=True):
        assert torch.allclose(value, seen[path], atol=1e-5), path


def test_auto_pairs_the_last_layer_of_each_resolution():
    student = [Layer("stem", (4, 8, 8)), Layer("a", (8, 4, 4)), Layer("a.relu", (8, 4, 4)), Layer("pool", (8, 1, 1))]
    teacher = [Layer("conv", (16, 8, 8)), Layer("b", (32, 4, 4)), Layer("c", (32, 2, 2)), Layer("pool", (32, 1, 1))]
    assert automatic(student, teacher, "x") == (Pair("stem", "conv"), Pair("a.relu", "b"))
    words = [Layer("embed", (6, 16)), Layer("encoder.0", (6, 16)), Layer("hidden", (10,))]
    deep = [Layer("embed", (6, 64)), Layer("encoder.5", (6, 64)), Layer("first", (80,)), Layer("second", (80,))]
    assert automatic(words, deep, "x") == (Pair("encoder.0", "encoder.5"), Pair("hidden", "second"))


def test_auto_pairs_with_each_of_several_teachers(resnet):
    torch.manual_seed(1)
    teachers = Ensemble(
        [Normalized(DigitsResNet(4, (8, 16)), NormalizeSpec(mean=(0.1,), std=(1.0,))), DigitsResNet(4, (16, 24))],
        [1.0, 3.0], "mean",
    )  # fmt: skip
    run = (lambda: resnet(*IMAGES)), (lambda: teachers(*IMAGES))
    alone = [resolved("auto", resnet, member, (run[0], lambda m=member: m(*IMAGES)), "fitnet")
             for member in teachers.members]  # fmt: skip
    found = resolved("auto", resnet, teachers, run, "fitnet")
    assert found == tuple(
        replace(pair, teacher=f"members.{i}.{pair.teacher}") for i, pairs in enumerate(alone) for pair in pairs
    )
    assert {"members.0.model.blocks.1", "members.1.blocks.1"} <= {pair.teacher for pair in found}
    assert not any(pair.teacher.endswith(("head", "model")) for pair in found)
    assert len({pair.name for pair in found}) == len(found) == 2 * len(alone[1])


def test_auto_finds_nothing_in_an_onnx_model_and_says_what_else_may_be_done(resnet):
    run = (lambda: resnet(*IMAGES)), (lambda: None)
    told = (
        "taps: auto of distiller 'fitnet' finds nothing in teacher {}: an ONNX model has no modules to compare with; "
    )
    with pytest.raises(RecipeError) as caught:
        resolved("auto", resnet, OnnxTeacher(), run, "fitnet")
    assert str(caught.value) == told.format(1) + (
        "use a distiller of outputs, such as 'logit-kd', or a teacher from a checkpoint"
    )
    with pytest.raises(RecipeError) as caught:
        resolved("auto", resnet, Ensemble([resnet, OnnxTeacher()], [1.0, 1.0], "mean"), run, "fitnet")
    assert str(caught.value) == told.format(2) + (
        "write the pairs with another teacher, as taps: [[path in student, members.0.path in that teacher]]"
    )


def test_auto_says_what_both_models_have_where_nothing_fits():
    with pytest.raises(RecipeError) as caught:
        automatic([Layer("a", (4, 8, 8))], [Layer("b", (4, 7, 7)), Layer("c", (9,))], "fitnet")
    assert str(caught.value) == (
        "taps: auto of distiller 'fitnet' finds no layers to pair: the student has 'a' 8x8, the teacher has 'b' 7x7, "
        "'c' a vector; write the pairs, as taps: [[path in student, path in teacher]]"
    )


def test_written_pairs_may_have_globs_that_match_equally_many(resnet):
    other = DigitsResNet(4, (4, 8, 16))
    run = (lambda: resnet(*IMAGES)), (lambda: other(*IMAGES))
    pairs = resolved([("blocks.*", "blocks.[12]"), ("bn", "bn")], resnet, other, run, "x")
    assert pairs == (Pair("blocks.0", "blocks.1"), Pair("blocks.1", "blocks.2"), Pair("bn", "bn"))
    with pytest.raises(RecipeError) as caught:
        resolved([("blocks.*", "blocks.*")], resnet, other, run, "x")
    assert str(caught.value) == (
        "the taps ['blocks.*', 'blocks.*'] of distiller 'x' match 2 modules of the student (blocks.0, blocks.1) and 3 "
        "of the teacher (blocks.0, blocks.1, blocks.2); write them as pairs"
    )
