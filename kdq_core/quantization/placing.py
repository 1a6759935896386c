"""Decides which places of a graph are quantized, and with how many bits.

The target names the places. The recipe's `quantize` section sets the bits, and which operators stay in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import fx

from kdq_core.errors import RecipeError, StageError, did_you_mean, listing
from kdq_core.quantization.layers import weight_readers
from kdq_core.recipe.spec import QuantizeSpec, Rule

if TYPE_CHECKING:
    from kdq_core.grids.place import Place
    from kdq_core.plugins.kinds import Quantizer, Target

Step = Callable[[fx.Node], Iterable[fx.Node]]
SHOWN = 12
"""The most names that an error lists."""
ROLES = {"weights": "weight", "activations": "activation"}
"""Fields of a rule, each with the role of the places it applies to."""
NO_LAYER = "the model has no layer that the target can quantize; it needs at least one conv or linear"


@dataclass(frozen=True)
class Placement:
    """The places that get quantizers, and the operators that the recipe's rules leave in float, as `path:type`.

    Operators of the model's own forward have an empty path: `:add`. A rule cannot tell apart two operators of one type
    in one forward.
    """

    places: tuple[Place, ...]
    keep_float: tuple[str, ...] = ()


def placed(graph: fx.GraphModule, target: Target, quantizer: Quantizer, spec: QuantizeSpec) -> Placement:
    """Choose the places of a captured graph for a recipe.

    Args:
        graph: from `capture`.
        target: names the places where a quantizer may go.
        quantizer: tells whether activations are quantized.
        spec: bits and rules.

    Raises:
        RecipeError: a rule matches nothing or changes nothing, or the rules skip every layer.
        StageError: the quantizer has nothing to quantize.
    """
    places = target.places(graph)
    if not any(place.role == "weight" for place in places):
        raise StageError(NO_LAYER)
    check_rules(spec.rules, places)
    check_effects(spec.rules, places, quantizer)
    skipped = {f"{place.path}:{place.operator}" for place in places if _stated(place, spec.rules, "skip", False)}
    keep = tuple(sorted(skipped))
    if keep:
        places = target.places(graph, keep_float=keep)
        if not any(place.role == "weight" for place in places):
            raise RecipeError("quantize.rules skip every layer that can be quantized; leave at least one")
    places = _wanted(places, quantizer)
    edges = set(_edges(graph, places))
    bits: dict[str, int] = {}
    for place in places:
        asked = "weights" if place.role == "weight" else "activations"
        common: int = getattr(spec, asked)
        default = max(common, spec.edges) if place.name in edges else common
        bits[place.name] = _stated(place, spec.rules, asked, default)
    narrowed = [narrow(place, bits[place.shared_with or place.name]) for place in places]
    return Placement(places=tuple(narrowed), keep_float=keep)


def _wanted(places: Sequence[Place], quantizer: Quantizer) -> tuple[Place, ...]:
    """Give the places that the quantizer quantizes.

    Raises:
        StageError: it quantizes none of them.
    """
    if quantizer.activations == "static":
        return tuple(places)
    weights = tuple(place for place in places if place.role == "weight")
    if quantizer.activations == "none":
        return weights
    if not any(place.operator == "linear" for place in weights):
        raise StageError(
            "ranges measured for each batch serve linear layers, and the model has none that can be quantized; "
            "use a quantizer with static ranges, such as 'minmax-qat'"
        )
    return tuple(place for place in weights if place.operator != "conv")


def narrow(place: Place, bits: int) -> Place:
    """Give the place with `bits` bits, within the range of the kernels; `limits` keeps the range of the kernels."""
    if bits >= 8:
        return replace(place, bits=8)
    if place.dtype == "int8":
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    else:
        low, high = 0, 2**bits - 1
    limits = place.kernel_range
    return replace(place, bits=bits, qmin=max(limits[0], low), qmax=min(limits[1], high), limits=limits)


def check_rules(rules: Sequence[Rule], places: Sequence[Place]) -> None:
    """Refuse a rule that matches nothing, or that skips only inputs of the model.

    Raises:
        RecipeError: the message has near names, or what to skip instead.
    """
    paths = sorted({place.path for place in places} - {""})
    operators = sorted({place.operator for place in places} - {""})
    for index, rule in enumerate(rules):
        matched = [place for place in places if _matches(rule, place)]
        if not matched:
            more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
            near = did_you_mean(rule.match, [*paths, *operators]) or "."
            raise RecipeError(
                f"quantize.rules[{index}]: no operator matches {rule.match!r}{near} "
                f"The model has {listing(paths[:SHOWN])}{more}; types of operator: {listing(operators)}."
            )
        if rule.skip and all(place.operator == "input" for place in matched):
            raise RecipeError(
                f"quantize.rules[{index}]: {rule.match!r} is no operator that could be left in float; skip the layers "
                "that read the input"
            )


def check_effects(rules: Sequence[Rule], places: Sequence[Place], quantizer: Quantizer) -> None:
    """Refuse a rule that sets bits but matches no place that gets integers.

    If a rule sets both fields, one of them with an effect is enough. Places that other rules skip count as places with
    integers: both rules may be meant for the same layers.

    Args:
        rules: rules of the recipe; each matches a place.
        places: all places of the target, with nothing skipped.
        quantizer: decides which of them get integers.

    Raises:
        RecipeError: the message says what the rule sets, why that changes nothing, and what to match instead.
        StageError: the quantizer has nothing to quantize.
    """
    kept = _wanted(places, quantizer)
    for index, rule in enumerate(rules):
        stated = {field: role for field, role in ROLES.items() if getattr(rule, field) is not None}
        open_to = [place for place in kept if place.role in stated.values()]
        if rule.skip is not None or any(_matches(rule, place) for place in open_to):
            continue
        why = " and ".join(_why_nothing(rule, role, places, quantizer.activations) for role in stated.values())
        names = sorted({place.path or place.operator for place in open_to})
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        instead = f"match one of {listing(names[:SHOWN])}{more}, or leave the rule out" if names else "leave it out"
        fields = " and ".join(f"{field!r}" for field in stated)
        raise RecipeError(
            f"quantize.rules[{index}]: {rule.match!r} states {fields}, which changes nothing: {why}; {instead}"
        )


def _why_nothing(rule: Rule, role: str, places: Sequence[Place], ranges: str) -> str:
    """Explain why the rule matches no place of this role that gets integers."""
    if role == "activation" and ranges != "static":
        return {
            "none": "the quantizer leaves all activations in float",
            "dynamic": "the runtime measures the ranges of activations for each batch, always with 8 bits",
        }[ranges]
    if any(place.role == role and _matches(rule, place) for place in places):
        return "with ranges measured for each batch a conv keeps float weights"
    kinds = listing(sorted({place.operator for place in places if _matches(rule, place)}))
    if role == "weight":
        return f"what it matches ({kinds}) has no weights"
    return f"what it matches ({kinds}) gives floats: nothing behind it takes integers"


def _matches(rule: Rule, place: Place) -> bool:
    return rule.match == place.operator or (bool(place.path) and fnmatchcase(place.path, rule.match))


def _stated(place: Place, rules: Sequence[Rule], field: str, default: Any) -> Any:
    """Give `field` of the last matching rule that sets it, otherwise `default`."""
    for rule in reversed(rules):
        if getattr(rule, field) is not None and _matches(rule, place):
            return getattr(rule, field)
    return default


def _edges(graph: fx.GraphModule, places: Sequence[Place]) -> Iterator[str]:
    """Yield the places at both ends of the model.

    They are the weights of the first and last layers, the model's inputs and outputs, and the inputs of the last
    layers.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    by_node = {place.node: place for place in places}
    layers: dict[fx.Node, list[str]] = {}
    for place in places:
        for user in weight_readers(graph, nodes[place.node]) if place.role == "weight" else ():
            layers.setdefault(user, []).append(place.name)
    inputs, outputs = graph.graph.find_nodes(op="placeholder"), graph.graph.output_node().all_input_nodes
    last = [layer for layer in layers if _is_outer(layer, layers.keys(), lambda node: node.users, outputs)]
    first = [layer for layer in layers if _is_outer(layer, layers.keys(), lambda node: node.all_input_nodes, inputs)]
    for layer in (*first, *last):
        yield from layers[layer]
    for end in (*inputs, *outputs, *(node for layer in last for node in layer.all_input_nodes)):
        node: fx.Node | None = end
        while node is not None and node.name not in by_node:  # steps back over dropout and copies
            node = node.all_input_nodes[0] if node.all_input_nodes and node.op != "get_attr" else None
        if node is not None:
            place = by_node[node.name]
            yield place.shared_with or place.name


def _is_outer(layer: fx.Node, layers: Set[fx.Node], step: Step, ends: Sequence[fx.Node]) -> bool:
    """Tell whether `step` leads from `layer` to one of `ends` without passing another layer.

    Nodes that another layer ahead leads to do not count. So of all blocks around a residual stream, only the last block
    is outer.
    """
    others = _led_to({layer}, step, layers) & layers
    theirs = others | _led_to(others, step, set())
    return not ({layer} | _led_to({layer}, step, theirs) - theirs).isdisjoint(ends)


def _led_to(starts: Set[fx.Node], step: Step, stops: Set[fx.Node]) -> Set[fx.Node]:
    """Find all nodes that `step` leads to from `starts`; the search stops at nodes in `stops`."""
    found: set[fx.Node] = set()
    ahead = list(starts)
    while ahead:
        new = set(step(ahead.pop())) - found
        found |= new
        ahead += new - stops
    return found
