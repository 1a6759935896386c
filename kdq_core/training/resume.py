"""The state of a fit between two epochs, as one safetensors file: no pickle, renamed into place.

It keeps weights, buffers, optimizer moments and the random generators. So KDQ resumes a killed fit with the same bits
as a fit without interruption.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdq_core.store.records import EpochRecord


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: Sequence[EpochRecord]) -> None:
    """Write the state after the last epoch of `history` to `path`."""
    tensors = {f"model/{name}": tensor for name, tensor in tensors_of(model).items()}
    scalars: dict[str, Any] = {}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            where = f"optimizer/{index}/{name}"
            if isinstance(value, Tensor):
                tensors[where] = value.detach().cpu().clone().contiguous()
            else:
                scalars[where] = value
    tensors["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"rng/cuda/{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    note = {"history": [record.model_dump() for record in history], "scalars": scalars}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    save_file(tensors, draft, metadata={"kdq": json.dumps(note)})
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[EpochRecord]:
    """Load the state of `path` into `model`, `optimizer` and the random generators, and give the history.

    If the file was cut short, for example by a failing disk, nothing is loaded and the history is empty.
    """
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads(file.metadata()["kdq"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError:
        return []
    model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
    moments: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **note["scalars"]}.items():
        if name.startswith("optimizer/"):
            _, index, field = name.split("/", 2)
            moments.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["rng/cpu"])
    if torch.cuda.is_available():
        kept = {int(n.rpartition("/")[2]): t for n, t in tensors.items() if n.startswith("rng/cuda/")}
        torch.cuda.set_rng_state_all([kept[index] for index in sorted(kept)])
    return [EpochRecord.model_validate(record) for record in note["history"]]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Give the state dict as detached, contiguous copies on the CPU, as safetensors needs them."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
