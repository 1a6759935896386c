"""Rounds the rows of an embedding's table that a batch reads, instead of the whole table in every step."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from kdq_core.grids.fake import FakeQuantize
from kdq_core.grids.rounding import round_to_grid
from kdq_core.quantization.layers import EMBEDDING

HOLDER = "look_ups"


class LookUp(nn.Module):
    """Reads rows from a table `[V, D]` with a scale for each column, and rounds them: `[...]` tokens give `[..., D]`.

    Values and gradients are those of rounding the whole table first, which it does if the batch reads at least as many
    rows as the table has. It has no state of its own.

    Args:
        fake: the table's fake-quantizer; it rounds with `FakeQuantize.forward`.
        further: the further arguments of `aten.embedding`: the token of the padding, and two switches.
    """

    def __init__(self, fake: FakeQuantize, further: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self._parts = (fake,)  # in a tuple, so that it is not registered a second time
        self.further = further

    @property
    def fake(self) -> FakeQuantize:
        """The table's fake-quantizer."""
        return self._parts[0]

    def forward(self, table: Tensor, tokens: Tensor) -> Tensor:
        """Observe the table if its fake-quantizer is `observing`; round the rows if it is `quantizing`."""
        fake, place = self.fake, self.fake.place
        if tokens.numel() >= table.shape[0]:
            return cast(Tensor, EMBEDDING(fake(table), tokens, *self.further))
        if fake.observing:
            with torch.no_grad():
                fake.watch(table.detach())
        rows: Tensor = EMBEDDING(table, tokens, *self.further)
        if not fake.quantizing:
            return rows
        scale, zero = fake.scale_and_zero()
        last = rows.dim() - 1
        rounded = round_to_grid(rows, scale, zero, place.qmin, place.qmax, last, clip_only=fake.clip_only)
        padding = self.further[0] if self.further else -1
        if padding < 0 or not scale.requires_grad:
            return rounded
        return torch.where(tokens.eq(padding).unsqueeze(-1), rounded.detach(), rounded)  # padding teaches no scale


def look_up_rows(prepared: fx.GraphModule) -> None:
    """Replace each embedding whose rounded table nothing else reads by a `LookUp` of the same name."""
    holder = nn.ModuleDict()
    prepared.add_module(HOLDER, holder)
    for call in list(prepared.graph.nodes):
        fake: Any = prepared.get_submodule(call.target) if call.op == "call_module" else None
        if not isinstance(fake, FakeQuantize) or type(fake).forward is not FakeQuantize.forward:
            continue
        op = next(iter(call.users))
        if op.target is not EMBEDDING or fake.place.axis != 1 or len(call.users) > 1:
            continue
        holder[op.name] = LookUp(fake, op.args[2:])
        with prepared.graph.inserting_before(op):
            rows = prepared.graph.call_module(f"{HOLDER}.{op.name}", (call.args[0], op.args[1]))
        _replace(op, rows)
        prepared.graph.erase_node(call)


def look_up_tables(model: fx.GraphModule) -> None:
    """Undo `look_up_rows`: each `LookUp` becomes an embedding again that reads a rounded table."""
    names = {id(module): name for name, module in model.named_modules()}
    for rows in list(model.graph.nodes):
        module = model.get_submodule(rows.target) if rows.op == "call_module" else None
        if not isinstance(module, LookUp):
            continue
        with model.graph.inserting_before(rows):
            call = model.graph.call_module(names[id(module.fake)], (rows.args[0],))
            op = model.graph.call_function(EMBEDDING, (call, rows.args[1], *module.further))
        call.meta = dict(rows.args[0].meta)
        _replace(rows, op)
    model.recompile()


def _replace(old: fx.Node, new: fx.Node) -> None:
    """Let `new` take the place and the name of `old`."""
    name, new.meta = old.name, dict(old.meta)
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
    new.name = name
