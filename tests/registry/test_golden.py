"""The golden batch is answered by a clean process, in the runtime of the target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdq_core.errors import StageError
from kdq_core.store.records import Artifact
from kdq_registry.golden import answers, differing, runtime_of, tolerances, write_golden

INPUTS = {"image": np.arange(8, dtype=np.float32).reshape(2, 4)}


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino", "my-own-target"])
def test_each_runtime_answers_as_the_weights_say(target: str, onnx_file: Callable[[int], Path], tmp_path: Path) -> None:
    import onnx

    weight = onnx.numpy_helper.to_array(onnx.load(onnx_file(0)).graph.initializer[0])
    found = answers(runtime_of(target), onnx_file(0), INPUTS)
    np.testing.assert_allclose(found["logits"], INPUTS["image"] @ weight, rtol=1e-5)
    write_golden(tmp_path / "golden", INPUTS, found)
    allowed = {"logits": 1e-4}
    assert list(differing(tmp_path / "golden", runtime_of(target), onnx_file(0), allowed)) == []
    (wrong,) = differing(tmp_path / "golden", runtime_of(target), onnx_file(1), allowed)
    assert wrong.startswith("it answers its golden batch with another 'logits': the largest difference is ")


def test_a_quantized_output_may_differ_by_two_steps_and_a_float_one_by_a_share_of_its_range(artifact: Artifact) -> None:
    outputs = {"logits": np.array([[0.0, 1.0, 5.0]], np.float32)}
    assert tolerances(artifact, outputs) == {"logits": pytest.approx(0.1)}
    assert tolerances(artifact.model_copy(update={"output_scales": (0.25,)}), outputs) == {"logits": 0.5}


def test_a_file_that_its_runtime_cannot_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(StageError, match=r"it does not answer its golden batch: .*(ONNX|Protobuf|parsing|Model)"):
        answers("onnxruntime", tmp_path / "model.onnx", INPUTS)
