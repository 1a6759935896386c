"""The teacher's parameters start a student, and are held in turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdq_core.distillation.transfer import holding, mapped, transfer
from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import TransferSpec
from kdq_core.recipe.teacher import NormalizeSpec
from kdq_core.teachers.members import Ensemble, Normalized
from kdq_core.teachers.onnx_teacher import OnnxTeacher
from kdq_workloads.digits_models import DigitsResNet


def widened(student: DigitsResNet) -> DigitsResNet:
    """A teacher with every channel twice that computes what the student does (Net2Wider)."""
    teacher = DigitsResNet(8, (16, 32))
    for name, value in student.state_dict().items():
        wide = value
        if value.ndim and not name.endswith("head.bias") and name != "head.weight":
            wide = wide.repeat_interleave(2, dim=0)
        if value.ndim > 1 and name != "conv.weight":
            wide = wide.repeat_interleave(2, dim=1) / 2
        teacher.state_dict()[name].copy_(wide)
    return teacher.eval()


class Scaled(nn.Module):
    """A model with a parameter of its own, beside those of its layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.fc, self.out = nn.Linear(4, width), nn.Linear(width, 3)


def layer_of(**parameters: torch.Tensor) -> nn.Module:
    """A layer of no known kind."""
    layer = nn.Module()
    for name, value in parameters.items():
        layer.register_parameter(name, nn.Parameter(value.clone(), requires_grad=value.is_floating_point()))
    return layer


class Positions(nn.Module):
    """A layer with positions to look up, a fixed table of them, and a statistic as batch norm has it."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.register_buffer("positions", torch.arange(length))
        self.register_buffer("row", torch.arange(length)[None])
        self.register_buffer("table", torch.ones(length, width))
        self.register_buffer("running_mean", torch.zeros(width))


class Tied(nn.Module):
    """A model whose head has the weights of its embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(10, width), nn.Linear(width, 10)
        self.head.weight = self.emb.weight


@pytest.fixture
def student(seeded):
    made = seeded(lambda: DigitsResNet(4, (8, 16)))
    with torch.no_grad():
        made(torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)))  # statistics of their own
    return made.eval()


def test_what_net2net_has_widened_is_narrowed_to_the_same_network(student, seeded):
    teacher, x = widened(student), torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(teacher(x), student(x), atol=1e-5)
    fresh = seeded(lambda: DigitsResNet(4, (8, 16)), 9).eval()
    written = transfer(TransferSpec(), fresh, teacher)
    assert set(written) == {name for name, _ in fresh.named_parameters()}
    assert torch.allclose(fresh(x), student(x), atol=1e-5)


def test_the_map_of_an_example_worked_by_hand():
    # 3 outputs of 4 inputs to 2 of 2: groups {0, 1}, {2} and {0, 1}, {2, 3}; sums along inputs, means along outputs.
    source, layer = nn.Linear(4, 3), nn.Linear(2, 2)
    with torch.no_grad():
        source.weight.copy_(torch.arange(12.0).reshape(3, 4))  # sums: (1, 5), (9, 13), (17, 21)
        source.bias.copy_(torch.tensor([1.0, 3.0, 7.0]))
    values = mapped(layer, source)
    assert values["weight"].tolist() == [[5.0, 9.0], [17.0, 21.0]]
    assert values["bias"].tolist() == [2.0, 7.0]


def test_the_map_is_linear_and_equals_a_product_of_matrices(seeded):
    source, layer = seeded(lambda: nn.Linear(7, 5)), nn.Linear(3, 2)
    left, right = np.zeros((2, 5)), np.zeros((7, 3))
    for row, group in enumerate(np.array_split(np.arange(5), 2)):
        left[row, group] = 1 / len(group)
    for column, group in enumerate(np.array_split(np.arange(7), 3)):
        right[group, column] = 1
    expected = left @ source.weight.detach().double().numpy() @ right
    assert mapped(layer, source)["weight"].numpy() == pytest.approx(expected, rel=1e-6)


def test_statistics_are_mapped_and_other_buffers_left_to_the_student():
    student, teacher = Positions(4, 3), Positions(8, 6)
    with torch.no_grad():
        teacher.scale.copy_(torch.arange(8.0))
        teacher.running_mean.copy_(torch.arange(8.0))
    assert {name: value.tolist() for name, value in mapped(student, teacher).items()} == {
        "scale": [0.5, 2.5, 4.5, 6.5],
        "running_mean": [0.5, 2.5, 4.5, 6.5],
    }
    assert transfer(TransferSpec(), student, teacher) == ("scale",)
    assert student.positions.tolist() == [0, 1, 2]
    assert student.row.tolist() == [[0, 1, 2]]
    assert torch.equal(student.table, torch.ones(3, 4))
    assert student.running_mean.tolist() == [0.5, 2.5, 4.5, 6.5]


def test_a_batch_norm_gives_all_it_has(seeded):
    source, layer = seeded(lambda: nn.BatchNorm1d(4)), nn.BatchNorm1d(2)
    source(torch.tensor([[0.0, 2.0, 4.0, 8.0], [4.0, 2.0, 4.0, 8.0]]))
    found = mapped(layer, source)
    assert list(found) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert found["running_mean"].tolist() == pytest.approx([0.2, 0.6])
    assert found["num_batches_tracked"] == 1


def test_a_layer_with_buffers_alone_has_nothing_to_give():
    student, teacher = (nn.Sequential(nn.Module(), nn.Linear(width, 1)) for width in (4, 8))
    for model in (student, teacher):
        model[0].register_buffer("table", torch.ones(6, model[1].in_features))
    assert transfer(TransferSpec(), student, teacher) == ("1.weight", "1.bias")
    with pytest.raises(RecipeError) as caught:
        transfer(TransferSpec(layers=(("0", "0"),)), student, teacher)
    assert str(caught.value) == (
        "layer '0' of the teacher (Module: without parameters) cannot be mapped to '0' of the student (Module: without "
        "parameters); the student's must be of the same kind, no wider, and of one kernel, groups and rows; "
        "grouped convolutions must have a whole fraction of the teacher's channels; transposed, recurrent and packed "
        "layers must have the same shapes"
    )


def test_an_embedding_keeps_its_rows_and_takes_means_of_its_columns():
    source, layer = nn.Embedding(3, 4), nn.Embedding(3, 2)
    with torch.no_grad():
        source.weight.copy_(torch.arange(12.0).reshape(3, 4))
    assert mapped(layer, source)["weight"].tolist() == [[0.5, 2.5], [4.5, 6.5], [8.5, 10.5]]
    assert mapped(nn.Embedding(2, 2), source) is None
    assert mapped(nn.Embedding(2, 1), nn.Embedding(3, 1)) is None
    bag = nn.EmbeddingBag(3, 4, _weight=source.weight.detach())
    assert mapped(nn.EmbeddingBag(3, 2), bag)["weight"].tolist() == [[0.5, 2.5], [4.5, 6.5], [8.5, 10.5]]
    assert mapped(nn.EmbeddingBag(2, 4), bag) is None


@pytest.mark.parametrize(
    ("shape", "wide"),
    [((4,), (8,)), ((3, 4), (3, 8)), ((1, 3, 4), (1, 3, 8)), ((1, 1, 4), (1, 1, 8)), ((4, 1, 1), (8, 1, 1)),
     ((1, 4, 2, 2), (1, 8, 2, 2)), ((1, 2, 2, 4), (1, 2, 2, 8)), ((4, 2, 2), (8, 2, 2))],
)  # fmt: skip
def test_what_is_added_to_features_or_scales_them_takes_means_along_their_axis(shape, wide):
    axis = next(axis for axis, size in enumerate(shape) if size != wide[axis])
    values = torch.arange(8.0).reshape([-1 if other == axis else 1 for other in range(len(wide))]).expand(wide)
    found = mapped(layer_of(pos=torch.zeros(shape)), layer_of(pos=values))["pos"]
    assert found.shape == shape
    assert torch.equal(found, values.unflatten(axis, (4, 2)).mean(axis + 1))


@pytest.mark.parametrize(
    ("shape", "wide"),
    [((2, 8), (3, 8)), ((1, 2, 8), (1, 3, 8)), ((2, 4), (3, 8)), ((1, 2, 2, 4), (1, 3, 3, 8)), ((2, 2), (2, 1))],
)
def test_positions_are_no_channels_so_that_fewer_of_them_cannot_be_mapped(shape, wide):
    assert mapped(layer_of(pos=torch.zeros(shape)), layer_of(pos=torch.ones(wide))) is None


def test_a_parameter_that_is_called_a_weight_has_outputs_and_inputs():
    found = mapped(layer_of(in_weight=torch.zeros(2, 4)), layer_of(in_weight=torch.ones(4, 8)))
    assert torch.equal(found["in_weight"], torch.full((2, 4), 2.0))


def test_a_layer_norm_over_several_axes_takes_means():
    assert torch.equal(mapped(nn.LayerNorm((3, 4)), nn.LayerNorm((3, 8)))["weight"], torch.ones(3, 4))
    assert torch.equal(mapped(nn.LayerNorm((4, 3, 3)), nn.LayerNorm((8, 3, 3)))["weight"], torch.ones(4, 3, 3))


def test_a_weight_under_a_parametrization_is_one_still():
    layer, source = (nn.utils.parametrizations.weight_norm(nn.Linear(size, 4)) for size in (4, 8))
    found = mapped(layer.parametrizations.weight, source.parametrizations.weight)["original1"]
    given = source.parametrizations.weight.original1
    assert torch.allclose(found, given.unflatten(1, (4, 2)).sum(2))


def test_whole_numbers_are_copied_and_never_made_narrower():
    assert mapped(layer_of(at=torch.zeros(2).long()), layer_of(at=torch.arange(2)))["at"].tolist() == [0, 1]
    assert mapped(layer_of(at=torch.zeros(2).long()), layer_of(at=torch.arange(4))) is None


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        (nn.Linear(4, 4), nn.Linear(2, 4)),
        (nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3)),
        (nn.Linear(2, 2), nn.Conv2d(2, 2, 1)),
        (nn.ConvTranspose2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 1)),
        (nn.MultiheadAttention(4, 1), nn.MultiheadAttention(6, 1)),
        (nn.GRU(2, 2), nn.GRU(4, 4)),
        (nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 8, 1)),
    ],
)
def test_wider_layers_other_kernels_and_other_kinds_cannot_be_mapped(layer, source):
    assert mapped(layer, source) is None


@pytest.mark.parametrize(
    ("inputs", "outputs"), [((4, 6), (4, 6)), ((4, 8), (4, 6)), ((4, 6), (4, 8)), ((4, 4), (8, 12))]
)
def test_channels_of_a_grouped_convolution_that_are_no_whole_multiple_cannot_be_mapped(inputs, outputs):
    # as 0 1, 2 3, 4, 5 the layer in front would put together what the two groups 0 1 2 and 3 4 5 keep apart
    layer, source = (nn.Conv2d(inputs[at], outputs[at], 1, groups=2) for at in (0, 1))
    assert mapped(layer, source) is None


def test_a_grouped_convolution_behind_another_layer_goes_with_its_channels(seeded):
    student, teacher, x = behind(4, 2), seeded(lambda: behind(8, 4)), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        for value in teacher[0].parameters():
            value[1::2] = value[::2]  # alike in each group
    assert len(transfer(TransferSpec(), student, teacher)) == 4
    assert torch.allclose(student(x), teacher(x).unflatten(1, (2, 2)).mean(2), atol=1e-6)


def behind(width: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, outputs, 1, groups=2))


def test_a_recurrent_layer_of_the_same_shapes_is_copied():
    source, layer = nn.GRU(2, 3), nn.GRU(2, 3)
    assert all(torch.equal(value, getattr(source, name)) for name, value in mapped(layer, source).items())


def test_pairs_may_be_written_and_one_that_cannot_be_mapped_is_named(seeded):
    student, teacher = nn.Sequential(nn.Linear(2, 3)), seeded(lambda: nn.Sequential(nn.ReLU(), nn.Linear(2, 6)))
    assert transfer(TransferSpec(layers=(("0", "1"),)), student, teacher) == ("0.weight", "0.bias")
    assert torch.allclose(student[0].bias[0], teacher[1].bias[:2].mean())
    with pytest.raises(RecipeError) as caught:
        transfer(TransferSpec(layers=(("1", "0"),)), teacher, student)
    assert str(caught.value) == (
        "layer '0' of the teacher (Linear: weight (3, 2), bias (3,)) cannot be mapped to '1' of the student (Linear: "
        "weight (6, 2), bias (6,)); the student's must be of the same kind, no wider, and of one kernel, groups and "
        "rows; grouped convolutions must have a whole fraction of the teacher's channels; transposed, recurrent and "
        "packed layers must have the same shapes"
    )
    with pytest.raises(RecipeError, match=r"distill\.transfer finds no layer of the student"):
        transfer(TransferSpec(), student, teacher)


def test_parameters_of_the_root_module_are_named_as_the_model_names_them_and_found_behind_a_normalisation():
    teacher, plain, other = Scaled(8), Scaled(4), Scaled(4)
    with torch.no_grad():
        teacher.scale.copy_(torch.arange(8.0))
    written = transfer(TransferSpec(), plain, teacher)
    assert written == ("scale", "fc.weight", "fc.bias", "out.weight", "out.bias")
    assert plain.scale.tolist() == [0.5, 2.5, 4.5, 6.5]
    assert transfer(TransferSpec(), other, Normalized(teacher, NormalizeSpec(mean=(0.1,), std=(1.0,)))) == written
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in other.state_dict().items())
    hooks = holding(TransferSpec(hold=0.9, rounds=2), plain, written, epochs=2, seed=0)
    assert "scale" in held(hooks, plain, 0) | held(hooks, plain, 1)


@pytest.mark.parametrize("layers", ["auto", (("emb", "emb"), ("head", "head"))])
def test_tied_weights_are_written_once_under_their_first_name(layers):
    teacher, student = Tied(8), Tied(4)
    expected = mapped(student.emb, teacher.emb)["weight"]
    written = transfer(TransferSpec(layers=layers), student, teacher)
    assert written == ("emb.weight", "head.bias")
    assert torch.equal(student.emb.weight, expected)
    hooks = holding(TransferSpec(hold=0.5, rounds=2), student, written, epochs=2, seed=0)
    assert held(hooks, student, 0) | held(hooks, student, 1) == set(written)


def test_the_pair_of_a_tied_weight_that_is_written_first_decides_how_it_is_mapped():
    teacher, student = Tied(8), Tied(4)
    expected = mapped(student.head, teacher.head)["weight"]
    pairs = TransferSpec(layers=(("head", "head"), ("emb", "emb")))
    assert transfer(pairs, student, teacher) == ("emb.weight", "head.bias")
    assert torch.equal(student.emb.weight, expected)


def test_of_two_pairs_for_one_layer_the_last_counts(seeded):
    student, teacher = nn.Sequential(nn.Linear(2, 2)), seeded(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert transfer(TransferSpec(layers=(("0", "0"), ("0", "1"))), student, teacher) == ("0.weight", "0.bias")
    assert torch.equal(student[0].weight, teacher[1].weight)


def test_onnx_models_have_no_layers_to_start_from():
    own = Normalized(OnnxTeacher(), NormalizeSpec(mean=(0.0,), std=(1.0,)))
    teacher = Ensemble([OnnxTeacher(), own], [1.0, 1.0], "mean")
    with pytest.raises(RecipeError) as caught:
        transfer(TransferSpec(), nn.Linear(1, 1), teacher)
    assert str(caught.value) == (
        "'distill.transfer' starts the student from the teacher's layers, but an ONNX model has none that could be "
        "read; leave it out, or use a teacher from a checkpoint"
    )


def test_a_teacher_with_a_normalisation_of_its_own_is_found_behind_it_and_of_several_one_must_be_named(student):
    teacher = Normalized(widened(student), NormalizeSpec(mean=(0.1,), std=(1.0,)))
    plain, other = DigitsResNet(4, (8, 16)), DigitsResNet(4, (8, 16))
    assert transfer(TransferSpec(), other, teacher) == transfer(TransferSpec(), plain, teacher.model)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in other.state_dict().items())
    with pytest.raises(RecipeError) as caught:
        transfer(TransferSpec(), other, Ensemble([teacher, widened(student)], [1.0, 1.0], "mean"))
    assert str(caught.value) == (
        "distill.transfer with layers: auto starts from one teacher, and there are 2; write the pairs, as layers: "
        "[[path in student, members.0.path in the first teacher]]"
    )
    both = Ensemble([teacher, widened(student)], [1.0, 1.0], "mean")
    pairs = TransferSpec(layers=(("conv", "members.0.model.conv"), ("head", "members.1.head")))
    assert transfer(pairs, other, both) == ("conv.weight", "head.weight", "head.bias")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("hold", "rounds", "epochs"), [(0.5, 4, 8), (0.5, 4, 3), (0.75, 4, 4), (0.1, 3, 7), (0.5, 9, 2)]
)
def test_each_round_holds_another_share_and_all_train_at_some_time(student, seed, hold, rounds, epochs):
    spec, names = TransferSpec(hold=hold, rounds=rounds), tuple(name for name, _ in student.named_parameters())
    hooks = holding(spec, student, names, epochs=epochs, seed=seed)
    seen = [held(hooks, student, epoch) for epoch in range(epochs)]
    assert [len(held) for held in seen] == [int(hold * len(names))] * epochs
    assert len(set(seen)) == min(rounds, epochs)
    assert not frozenset.intersection(*seen)
    times = [sum(name in held for held in dict.fromkeys(seen)) for name in names]
    assert max(times) - min(times) <= 1
    assert [held(hooks, student, epoch) for epoch in range(epochs)] == seen
    assert held(holding(spec, student, names, epochs=epochs, seed=seed), student, epochs - 1) == seen[-1]  # resumed


def test_a_round_is_some_epochs_and_another_seed_draws_others(student):
    spec, names = TransferSpec(hold=0.5, rounds=4), tuple(name for name, _ in student.named_parameters())
    seen, other = (
        [held(holding(spec, student, names, epochs=8, seed=seed), student, epoch) for epoch in range(8)]
        for seed in (3, 4)
    )
    assert seen[::2] == seen[1::2]
    assert seen != other


def held(hooks, student, epoch):
    """The parameters that get no gradient in an epoch."""
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    hooks["before_epoch"](epoch)
    hooks["after_backward"]()
    return frozenset(name for name, p in student.named_parameters() if p.grad is None)
