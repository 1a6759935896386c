"""The families of operators whose int8 kernels may be slower than the float ones, as forms of a file.

Which of them are slower depends on machine and batch size, so KDQ measures. These families were slower in at least one
measurement: depthwise and grouped convolutions, whose int8 kernels cannot fill their registers; convolutions of few
input channels, such as the first one; recurrent layers, at small batches; embeddings, which are dequantized column by
column; and narrow linear layers, where writing the result takes longer than the product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch.fx import Node

from kdq_core.api import Form, module_path
from kdq_targets.onnx_operators import weight_of
from kdq_targets.onnx_places import Finder

FEW_CHANNELS = 4
"""A convolution of at most so many input channels may be slower: the int8 kernels take four numbers at a time."""
NARROW = 128
"""A linear layer with fewer inputs or outputs may be slower."""
MATTERS = 0.01
"""Narrow linear layers are in doubt if they have at least this share of the multiply-accumulates."""
LAYERS = ("conv", "linear", "embedding", "lstm", "gru")
NAMES = {
    "grouped": "grouped convs in float", "first": "convs of few channels in float", "lstm": "lstm in float",
    "gru": "gru in float", "embedding": "embeddings in float", "linear": "narrow linears in float",
}  # fmt: skip
EVERYTHING = "all layers in float"
STEPS = Form(name="gru by steps", options={"gru": "steps"})


def forms_of(finder: Finder, kept: Sequence[str], gru: str, kinds: Sequence[str] = LAYERS) -> tuple[Form, ...]:
    """Return one form for each family that is in doubt, and one with all layers in float at the end.

    Args:
        finder: of the captured graph.
        kept: layers that compute in float anyway.
        gru: the option of the target.
        kinds: types of layers that the runtime computes in float if their weights alone are integers.
    """
    layers = [(node, kind) for node, kind, reason in finder.operators() if kind in kinds and not reason]
    families: dict[str, list[str]] = {}
    for node, kind in layers:
        family = family_of(node, kind)
        if family:
            families.setdefault(family, []).append(_name(node, kind))
    macs = {_name(node, kind): finder.macs(node, kind) for node, kind in layers}
    total = sum(macs.values()) or 1
    if sum(macs[name] for name in set(families.get("linear", ()))) < MATTERS * total:
        families.pop("linear", None)
    found = {NAMES[family]: names for family, names in families.items()}
    everything = [_name(node, kind) for node, kind in layers]
    found = {name: names for name, names in found.items() if set(names) != set(everything)}
    other = (STEPS,) if gru == "int8" and any(kind == "gru" for _, kind in layers) else ()
    return (*other, *_forms({**found, EVERYTHING: everything}, kept)) if layers else ()


def family_of(node: Node, kind: str) -> str:
    """Return the family that a layer belongs to, or nothing if its int8 kernel is not in doubt."""
    if kind in ("lstm", "gru", "embedding"):
        return kind
    weight: Any = cast(Node, weight_of(node)).meta["val"]
    out, given = int(weight.shape[0]), int(weight.shape[1])
    if kind == "linear":
        return "linear" if min(out, given) < NARROW else ""
    groups = int(cast(int, node.args[6])) if len(node.args) > 6 else 1
    return "grouped" if groups > 1 else "first" if given <= FEW_CHANNELS else ""


def _name(node: Node, kind: str) -> str:
    return f"{module_path(node)}:{kind}"


def _forms(families: dict[str, list[str]], kept: Sequence[str]) -> Iterator[Form]:
    for name, names in families.items():
        floats = tuple(dict.fromkeys(names))
        yield Form(name=name, options={"weight_only": [*kept, *floats]}, floats=floats)
