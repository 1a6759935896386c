"""Weights of third-party models are read from their wheels without running code of them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdq_core.api import PluginError

RESEMBLYZER = "resemblyzer/Resemblyzer-0.1.4-py3-none-any.whl!resemblyzer/pretrained.pt"
G2P_EN = "g2p-en/g2p_en-2.1.0-py3-none-any.whl!g2p_en/checkpoint20.npz"


def test_the_weights_of_resemblyzer_fit_its_net(
    small_files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdq_examples.voice_nets import VoiceEncoder
    from kdq_examples.weights import main

    net, file = VoiceEncoder(), io.BytesIO()
    torch.save({"step": 1, "model_state": {**net.state_dict(), "similarity_weight": torch.ones(1)}}, file)
    small_files[RESEMBLYZER] = file.getvalue()
    main(["resemblyzer", str(tmp_path / "voice.safetensors")])
    loaded = load_file(tmp_path / "voice.safetensors")
    assert loaded.keys() == net.state_dict().keys()
    assert all(torch.equal(loaded[name], x) for name, x in net.state_dict().items())
    assert capsys.readouterr().out.endswith("voice.safetensors: 14 tensors, 1,423,616 numbers\n")


def test_a_checkpoint_that_would_run_code_is_not_loaded(small_files: dict[str, bytes]) -> None:
    from kdq_examples.weights import resemblyzer

    small_files[RESEMBLYZER] = pickle.dumps(Path, protocol=2)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        resemblyzer()


def test_the_gru_cells_of_g2p_en_become_layers(small_files: dict[str, bytes], tmp_path: Path) -> None:
    from kdq_examples.g2p_nets import G2pNet
    from kdq_examples.weights import main

    random, file = np.random.default_rng(0), io.BytesIO()
    cells = {f"{part}_{name}": shape for part in ("enc", "dec") for name, shape in
             {"w_ih": (768, 256), "w_hh": (768, 256), "b_ih": (768,), "b_hh": (768,)}.items()}  # fmt: skip
    shapes = {**cells, "enc_emb": (29, 256), "dec_emb": (74, 256), "fc_w": (74, 256), "fc_b": (74,)}
    given = {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(file, **given)  # type: ignore[arg-type]
    small_files[G2P_EN] = file.getvalue()
    main(["g2p-en", str(tmp_path / "g2p.safetensors")])
    net = G2pNet().eval()
    net.load_state_dict(load_file(tmp_path / "g2p.safetensors"))
    with torch.no_grad():
        logits = net(torch.tensor([[3, 4, 2, 0]]), torch.tensor([[2, 10]]))[0].numpy()
    state = np.zeros((1, 256), np.float32)
    for letter in (3, 4, 2):
        state = cell(given, "enc", given["enc_emb"][[letter]], state)
    for place, phoneme in enumerate((2, 10)):
        state = cell(given, "dec", given["dec_emb"][[phoneme]], state)
        assert np.abs(state @ given["fc_w"].T + given["fc_b"] - logits[place]).max() < 1e-5


def cell(given: dict[str, np.ndarray], part: str, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Compute one step of a GRU cell as g2p-en does, `[1, I], [1, H] -> [1, H]`."""
    r_x, z_x, n_x = np.split(x @ given[f"{part}_w_ih"].T + given[f"{part}_b_ih"], 3, 1)
    r_h, z_h, n_h = np.split(h @ given[f"{part}_w_hh"].T + given[f"{part}_b_hh"], 3, 1)
    r, z = 1 / (1 + np.exp(-r_x - r_h)), 1 / (1 + np.exp(-z_x - z_h))
    new: np.ndarray = (1 - z) * np.tanh(n_x + r * n_h) + z * h
    return new


def test_a_wheel_without_the_file_is_told(small_files: dict[str, bytes]) -> None:
    from kdq_examples.weights import g2p_en

    small_files["g2p-en/g2p_en-2.1.0-py3-none-any.whl!g2p_en/g2p.py"] = b""
    with pytest.raises(PluginError) as error:
        g2p_en()
    assert str(error.value) == (
        "'g2p-en/g2p_en-2.1.0-py3-none-any.whl' has no 'g2p_en/checkpoint20.npz'; it has: g2p_en/g2p.py"
    )
