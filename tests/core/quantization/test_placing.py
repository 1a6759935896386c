"""Bits and rules: which place gets what."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.errors import RecipeError
from kdq_core.quantization.capture import capture, module_path
from kdq_core.quantization.placing import placed
from kdq_core.recipe.spec import QuantizeSpec, Recipe
from kdq_quantizers.dynamic import Dynamic
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_quantizers.weight_only import WeightOnly
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_targets.openvino_cpu import OpenVinoCpu


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.hidden, self.head = nn.Linear(128, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.max_pool2d(x + F.relu(self.body(x)), 2).flatten(1)
        return self.head(F.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def graph():
    return capture(Net(), (torch.randn(2, 1, 8, 8),))


def bits(graph, reduce_range="off", **section):
    target = OnnxRuntimeCpu(reduce_range=reduce_range)
    return placed(graph, target, MinMaxQat(), QuantizeSpec.model_validate(section))


def by_path(placement, role):
    return {
        p.path or p.name: (p.bits, p.qmin, p.qmax) for p in placement.places if p.role == role and not p.shared_with
    }


def weights(placement):
    return {p.name: p.bits for p in placement.places if p.role == "weight"}


def test_the_first_and_the_last_layer_keep_8_bits(graph):
    placement = bits(graph, weights=4, activations=4)
    assert by_path(placement, "weight") == {
        "stem": (8, -127, 127), "body": (4, -8, 7), "hidden": (4, -8, 7), "head": (8, -127, 127),
    }  # fmt: skip
    kept = {p.name: p.bits for p in placement.places if p.role == "activation"}
    assert kept["x:input"] == 8
    assert [p.bits for p in placement.places if p.path in ("stem", "body") and p.role == "activation"] == [4, 4]
    assert [p.bits for p in placement.places if p.path in ("hidden", "head") and p.role == "activation"] == [8, 8]


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return torch.cat([self.one(x) + self.two(x), F.avg_pool2d(x, 3, 1, 1)], 1)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.mixer, self.head = nn.Conv2d(1, 4, 1), Mixer(), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.mixer(x + F.avg_pool2d(x, 3, 1, 1)))


@pytest.mark.parametrize("target", [OnnxRuntimeCpu(reduce_range="off"), OpenVinoCpu(reduce_range="off")])
@pytest.mark.parametrize(
    ("rules", "kept", "float_too"),
    [
        ([{"match": "add", "skip": True}], {":add", "mixer:add"}, {":pool", "mixer:pool", "mixer:concat"}),
        ([{"match": "pool", "skip": True}, {"match": "mixer", "skip": False}], {":pool"}, set()),
        ([{"match": "concat", "skip": True}], {"mixer:concat"}, {"mixer:add", "mixer:pool"}),
        ([{"match": "mixer", "skip": True}], {"mixer:add", "mixer:concat", "mixer:pool"}, set()),
    ],
)
def test_operators_are_left_in_float_one_by_one(target, rules, kept, float_too):
    mixed = capture(Mixed(), (torch.randn(2, 1, 8, 8),))
    placement = placed(mixed, target, MinMaxQat(), QuantizeSpec.model_validate({"rules": rules}))
    assert set(placement.keep_float) == kept
    reasons = {
        f"{module_path(node)}:{kind}": reason
        for node, kind, reason in target.finder(mixed, placement.keep_float).operators()
    }
    assert {name for name, reason in reasons.items() if reason == "left in float by a rule of the recipe"} == kept
    assert {name for name, reason in reasons.items() if reason} == kept | float_too
    assert len(reasons) == 9
    assert {name for name in reasons if name.endswith(":conv")} == {
        "stem:conv", "mixer.one:conv", "mixer.two:conv", "head:conv"
    }  # fmt: skip


def test_an_input_is_no_operator_that_could_be_skipped(graph):
    with pytest.raises(RecipeError) as caught:
        bits(graph, rules=[{"match": "input", "skip": True}])
    assert str(caught.value) == (
        "quantize.rules[0]: 'input' is no operator that could be left in float; skip the layers that read the input"
    )
    assert bits(graph, rules=[{"match": "input", "activations": 7}], edges=2).keep_float == ()


class Heads(nn.Module):
    def __init__(self, cascade=False):
        super().__init__()
        self.stem, self.hidden = nn.Linear(8, 8), nn.Linear(8, 8)
        self.one, self.two, self.cascade = nn.Linear(8, 3), nn.Linear(11 if cascade else 8, 2), cascade

    def forward(self, x):
        x = F.relu(self.hidden(F.relu(self.stem(x))))
        one = self.one(x)
        return {"one": one, "two": self.two(torch.cat([x, one], 1) if self.cascade else x)}


@pytest.mark.parametrize("cascade", [False, True])
def test_every_head_keeps_8_bits(cascade):
    placement = bits(capture(Heads(cascade), (torch.randn(2, 8),)), weights=4, activations=4)
    assert weights(placement) == {"stem.weight": 8, "hidden.weight": 4, "one.weight": 8, "two.weight": 8}
    made = {p.path: p.bits for p in placement.places if p.role == "activation" and p.operator == "linear"}
    assert made == {"stem": 4, "hidden": 8, "one": 8, "two": 8}


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.LSTM(4, 6, bidirectional=True, batch_first=True), nn.LSTM(12, 6, batch_first=True)
        self.hidden, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(F.relu(self.hidden(self.two(self.one(x)[0])[0][:, -1])))


def test_all_weights_of_a_first_recurrent_layer_keep_8_bits():
    kept = weights(bits(capture(Gated(), (torch.randn(2, 5, 4),)), weights=4))
    assert {name: value for name, value in kept.items() if name.startswith("one")} == {
        "one.weight_ih_l0": 8, "one.weight_hh_l0": 8, "one.weight_ih_l0_reverse": 8, "one.weight_hh_l0_reverse": 8,
    }  # fmt: skip
    assert {name: value for name, value in kept.items() if not name.startswith("one")} == {
        "two.weight_ih_l0": 4, "two.weight_hh_l0": 4, "hidden.weight": 4, "head.weight": 8,
    }  # fmt: skip


class Table(nn.Module):
    """Two columns of categories beside numbers."""

    def __init__(self):
        super().__init__()
        self.colour, self.shape = nn.Embedding(5, 4), nn.Embedding(6, 4)
        self.mixed, self.hidden, self.head = nn.Linear(11, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, numbers, codes):
        x = torch.cat([numbers, self.colour(codes[:, 0]), self.shape(codes[:, 1])], 1)
        return self.head(F.relu(self.hidden(F.relu(self.mixed(x)))))


def test_every_layer_that_an_input_goes_into_keeps_8_bits():
    graph = capture(Table(), (torch.randn(2, 3), torch.zeros(2, 2, dtype=torch.int64)))
    assert weights(bits(graph, weights=4)) == {
        "colour.weight": 8, "shape.weight": 8, "mixed.weight": 8, "hidden.weight": 4, "head.weight": 8,
    }  # fmt: skip


class Stream(nn.Module):
    """Blocks around a stream that is the output itself."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.wide, self.narrow = (nn.ModuleList(nn.Linear(8, 8) for _ in range(3)) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            x = x + narrow(F.relu(wide(x)))
        return x


def test_what_a_later_layer_is_added_to_is_not_the_last():
    kept = weights(bits(capture(Stream(), (torch.randn(2, 8),)), weights=4))
    assert {name for name, value in kept.items() if value == 8} == {"stem.weight", "narrow.2.weight"}


def test_what_moves_data_has_the_bits_of_what_it_moves(graph):
    places = {p.name: p for p in bits(graph, weights=4, activations=3).places}
    movers = [p for p in places.values() if p.shared_with]
    assert movers
    assert all((p.bits, p.qmax) == (places[p.shared_with].bits, places[p.shared_with].qmax) for p in movers)


def test_edges_may_be_lowered(graph):
    assert {p.bits for p in bits(graph, weights=2, activations=2, edges=2).places} == {2}


def test_narrow_kernels_stay_narrow(graph):
    assert by_path(bits(graph, reduce_range="on", weights=7, edges=2), "weight")["body"] == (7, -63, 63)


def test_the_last_rule_that_states_a_field_wins(graph):
    rules = [{"match": "conv", "weights": 2}, {"match": "b*", "weights": 3}, {"match": "body", "activations": 5}]
    placement = bits(graph, weights=4, rules=rules)
    assert {path: b for path, (b, _, _) in by_path(placement, "weight").items()} == {
        "stem": 2, "body": 3, "hidden": 4, "head": 8,
    }  # fmt: skip
    assert [p.bits for p in placement.places if p.path == "body" and p.role == "activation"] == [5]


def test_a_skipped_layer_has_no_place_and_a_later_rule_takes_it_back(graph):
    rules = [{"match": "linear", "skip": True}, {"match": "head", "skip": False}]
    placement = bits(graph, rules=rules)
    assert placement.keep_float == ("hidden:linear",)
    assert set(by_path(placement, "weight")) == {"stem", "body", "head"}


def test_a_recipe_on_its_way_to_a_worker_keeps_its_skips(graph):
    rules = [{"match": "hidden", "skip": True}, {"match": "linear", "weights": 4}]
    recipe = Recipe.model_validate({"name": "skips", "workload": {"use": "digits"}, "quantize": {"rules": rules}})
    sent = Recipe.model_validate_json(recipe.model_dump_json())
    assert sent == recipe
    for spec in (recipe.quantize, sent.quantize):
        placement = placed(graph, OnnxRuntimeCpu(reduce_range="off"), MinMaxQat(), spec)
        assert set(by_path(placement, "weight")) == {"stem", "body", "head"}
        assert by_path(placement, "weight")["head"] == (4, -8, 7)


def test_a_rule_that_matches_nothing_lists_near_names(graph):
    with pytest.raises(RecipeError) as caught:
        bits(graph, rules=[{"match": "conv", "weights": 4}, {"match": "hiden", "skip": True}])
    assert str(caught.value) == (
        "quantize.rules[1]: no operator matches 'hiden'; did you mean 'hidden'? "
        "The model has body, head, hidden, stem; types of operator: add, conv, input, linear."
    )


LAYERS = "body, head, hidden, stem"
WITHOUT = "leave the rule out"


@pytest.mark.parametrize(
    ("quantizer", "rule", "refused"),
    [
        (
            MinMaxQat(), {"match": "add", "weights": 4},
            "'add' states 'weights', which changes nothing: what it matches (add) has no weights; "
            f"match one of {LAYERS}, or {WITHOUT}",
        ),
        (
            Dynamic(), {"match": "body", "weights": 4},
            "'body' states 'weights', which changes nothing: with ranges measured for each batch a conv keeps float "
            f"weights; match one of head, hidden, or {WITHOUT}",
        ),
        (
            Dynamic(), {"match": "hidden", "activations": 4},
            "'hidden' states 'activations', which changes nothing: the runtime measures the ranges of activations for "
            "each batch, always with 8 bits; leave it out",
        ),
        (
            WeightOnly(), {"match": "conv", "activations": 4},
            "'conv' states 'activations', which changes nothing: the quantizer leaves all activations in float; "
            "leave it out",
        ),
        (
            WeightOnly(), {"match": "add", "weights": 4, "activations": 4},
            "'add' states 'weights' and 'activations', which changes nothing: what it matches (add) has no weights and "
            f"the quantizer leaves all activations in float; match one of {LAYERS}, or {WITHOUT}",
        ),
    ],
    ids=lambda value: value["match"] if isinstance(value, dict) else type(value).__name__,
)  # fmt: skip
def test_a_rule_that_changes_nothing_is_refused(graph, quantizer, rule, refused):
    spec = QuantizeSpec.model_validate({"rules": [{"match": "stem", "skip": False}, rule]})
    with pytest.raises(RecipeError) as caught:
        placed(graph, OnnxRuntimeCpu(reduce_range="off"), quantizer, spec)
    assert str(caught.value) == f"quantize.rules[1]: {refused}"


def test_a_layer_whose_output_stays_float_has_no_bits_of_activations():
    normed = capture(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (torch.randn(2, 6),))
    with pytest.raises(RecipeError) as caught:
        bits(normed, rules=[{"match": "0", "weights": 4, "activations": 4}, {"match": "0", "activations": 4}])
    assert str(caught.value) == (
        "quantize.rules[1]: '0' states 'activations', which changes nothing: what it matches (linear) gives floats: "
        f"nothing behind it takes integers; match one of 1, 2, input, or {WITHOUT}"
    )


@pytest.mark.parametrize(
    ("quantizer", "rules"),
    [
        (MinMaxQat(), [{"match": "add", "weights": 4, "activations": 4}]),
        (WeightOnly(), [{"match": "*", "weights": 4, "activations": 4}]),
        (Dynamic(), [{"match": "*", "weights": 4}]),
        (Dynamic(), [{"match": "conv", "weights": 4, "skip": True}]),
        (WeightOnly(), [{"match": "add", "skip": True}]),
        (MinMaxQat(), [{"match": "body", "activations": 4}, {"match": "body", "skip": True}]),
        (MinMaxQat(), [{"match": "linear", "skip": True}, {"match": "hidden", "activations": 4}]),
    ],
)
def test_one_effect_of_a_rule_is_enough_and_what_others_skip_counts(graph, quantizer, rules):
    placed(graph, OnnxRuntimeCpu(reduce_range="off"), quantizer, QuantizeSpec.model_validate({"rules": rules}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": 1},
        {"weights": 9},
        {"activations": 1},
        {"rules": [{"match": "conv"}]},
        {"rules": [{"match": "conv", "skip": None}]},
    ],
)
def test_bits_out_of_range_and_empty_rules_are_refused(wrong):
    with pytest.raises(ValueError, match=r"greater than or equal to 2|less than or equal to 8|a rule says"):
        QuantizeSpec.model_validate(wrong)
