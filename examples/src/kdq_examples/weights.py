"""Reads the weights of third-party models from their published wheels, which are not installed and run no code.

`python -m kdq_examples.weights NAME FILE.safetensors` writes them for the recipes `resemblyzer.yaml` and `g2p-en.yaml`.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.api import PluginError
from kdq_examples import files

if TYPE_CHECKING:
    from torch import Tensor

RESEMBLYZER = "resemblyzer/Resemblyzer-0.1.4-py3-none-any.whl"
G2P_EN = "g2p-en/g2p_en-2.1.0-py3-none-any.whl"


def member(wheel: str, name: str) -> bytes:
    """Give one file of a wheel.

    Raises:
        PluginError: the wheel has no such file.
    """
    found = files.archive(wheel)
    if name not in found:
        raise PluginError(f"{wheel!r} has no {name!r}; it has: {', '.join(sorted(found))}")
    return found[name]


def resemblyzer() -> dict[str, Tensor]:
    """Give the weights of `VoiceEncoder`: an LSTM of three layers and a linear layer."""
    import torch

    checkpoint = torch.load(io.BytesIO(member(RESEMBLYZER, "resemblyzer/pretrained.pt")), "cpu", weights_only=True)
    state: dict[str, Tensor] = checkpoint["model_state"]
    return {name: x.contiguous() for name, x in state.items() if name.startswith(("lstm.", "linear."))}


def g2p_en() -> dict[str, Tensor]:
    """Give the weights of `G2pNet`: GRU cells as recurrent layers of one layer."""
    import numpy as np
    import torch

    arrays = np.load(io.BytesIO(member(G2P_EN, "g2p_en/checkpoint20.npz")), allow_pickle=False)
    names = {"fc_w": "head.weight", "fc_b": "head.bias"}
    for part, layer in {"enc": "encoder", "dec": "decoder"}.items():
        names[f"{part}_emb"] = f"{layer}_table.weight"
        names |= {f"{part}_{one}": f"{layer}.{full}" for one, full in GRU.items()}
    return {name: torch.from_numpy(np.ascontiguousarray(arrays[given], np.float32)) for given, name in names.items()}


GRU = {"w_ih": "weight_ih_l0", "w_hh": "weight_hh_l0", "b_ih": "bias_ih_l0", "b_hh": "bias_hh_l0"}
MODELS: dict[str, Callable[[], dict[str, Tensor]]] = {"resemblyzer": resemblyzer, "g2p-en": g2p_en}


def main(arguments: list[str] | None = None) -> None:
    """Write the weights of a model into a safetensors file."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(prog="python -m kdq_examples.weights", description=main.__doc__)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("file", type=Path, help="the safetensors file to write")
    asked = parser.parse_args(arguments)
    weights = MODELS[asked.model]()
    save_file(weights, asked.file)
    print(f"{asked.file}: {len(weights)} tensors, {sum(x.numel() for x in weights.values()):,} numbers")


if __name__ == "__main__":
    main()
