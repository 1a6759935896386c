"""What never becomes an entry: it would be damaged, or of no use, for ever."""

import json
import math
import os
import struct
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from pydantic import JsonValue, PlainSerializer
from safetensors.torch import save_file

from kdq_core.errors import StageError
from kdq_core.store import family
from kdq_core.store.family import Record
from kdq_core.store.records import Artifact, Checkpoint, Gain
from kdq_core.store.store import Store

KEY = "ab" + "0" * 62
RECORD = Checkpoint(slot="student", weights="weights.safetensors", parameters=3)
HELP = "Lower learning_rate, set clip_norm, or check the data and the given weights for NaN"


def refused(store: Store, draft: Path, record: Record = RECORD, parts: dict[str, JsonValue] | None = None) -> str:
    """Text of the error, after which there is no entry."""
    with pytest.raises(StageError) as caught:
        store.commit(draft, stage="distill", key=KEY, parts=parts or {}, record=record)
    assert store.lookup(KEY) is None
    assert list(store.manifests("distill")) == []
    return str(caught.value)


GAIN = Gain(metric="top1", taught=math.nan, control=0.0, difference=0.0, low=0.0, high=0.0, samples=1)
ARTIFACT = Artifact(
    path="a", example="e", baselines={}, inputs=(), outputs=(), output_scales=(1.0, math.inf), weight_bits_used=8
)


@pytest.mark.parametrize(
    ("record", "parts", "named"),
    [
        (RECORD.model_copy(update={"gains": (GAIN,)}), {}, "nan as 'record.gains.0.taught'"),
        (RECORD.model_copy(update={"answers": {"a": {"b": [-math.inf]}}}), {}, "-inf as 'record.answers.a.b.0'"),
        (ARTIFACT, {}, "inf as 'record.output_scales.1'"),
        (RECORD, {"recipe": {"x": math.nan}}, "nan as 'parts.recipe.x'"),
    ],
)
def test_a_number_that_is_not_finite_is_named_and_nothing_is_stored(
    tmp_path: Path, record: Record, parts: dict[str, JsonValue], named: str
) -> None:
    store = Store(tmp_path)
    with store.draft(KEY) as draft:
        assert refused(store, draft, record, parts) == (
            f"stage 'distill' gave {named}; nothing was stored. Only metrics and curves may be NaN or infinite: check "
            "what the stage computes there, or give it as a Metric"
        )


def test_a_record_that_cannot_be_read_again_is_named_and_nothing_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneWay(Record):
        type: Literal["one-way"] = "one-way"
        size: Annotated[int, PlainSerializer(lambda size: f"{size} rows")]

    monkeypatch.delitem(family.FAMILY, "one-way")
    family.FAMILY["one-way"] = OneWay
    store = Store(tmp_path)
    with store.draft(KEY) as draft:
        text = refused(store, draft, OneWay(size=3))
    assert text.startswith("the record 'one-way' of stage 'distill' cannot be read again as it is written (record")
    assert text.endswith("; nothing was stored. Let every field of its class read what it writes")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_named_and_nothing_is_stored(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    store = Store(tmp_path)
    bad = torch.tensor([1.0, value, 2.0]).to(dtype)
    with store.draft(KEY) as draft:
        (draft / "sub").mkdir()
        save_file({"stem.weight": torch.ones(3), "head.weight": bad}, draft / "sub" / "weights.safetensors")
        assert refused(store, draft) == (
            f"the tensor 'head.weight' of 'sub/weights.safetensors' in stage 'distill' holds {value!r}; nothing was "
            f"stored. {HELP}"
        )


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((3, 3), -math.inf).triu(1),
        torch.zeros(0),
        torch.tensor(1.0),
        torch.tensor([1, 2]),
        torch.tensor([True]),
        torch.ones(2, dtype=torch.float8_e4m3fn),
        torch.ones(2, dtype=torch.complex64),
    ],
    ids=["mask", "empty", "scalar", "integers", "booleans", "fp8", "complex"],
)
def test_masks_and_tensors_of_any_kind_are_stored(tmp_path: Path, tensor: torch.Tensor) -> None:
    store = Store(tmp_path)
    with store.draft(KEY) as draft:
        save_file({"x": tensor}, draft / "weights.safetensors")
        store.commit(draft, stage="distill", key=KEY, parts={}, record=RECORD)
    assert store.lookup(KEY) is not None


@pytest.mark.parametrize("values", [[-math.inf], [0.0, math.inf], [0.0, 1.0, -math.inf], [0.0, math.nan]])
def test_only_zeros_and_negative_infinities_are_a_mask(tmp_path: Path, values: list[float]) -> None:
    store = Store(tmp_path)
    with store.draft(KEY) as draft:
        save_file({"x": torch.tensor(values)}, draft / "weights.safetensors")
        assert f"the tensor 'x' of 'weights.safetensors' in stage 'distill' holds {values[-1]!r};" in refused(
            store, draft
        )


def test_a_complex_tensor_with_nan_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.draft(KEY) as draft:
        save_file({"x": torch.tensor([complex(1, math.nan)])}, draft / "weights.safetensors")
        assert "the tensor 'x' of 'weights.safetensors' in stage 'distill' holds nan;" in refused(store, draft)


def test_a_file_that_only_calls_itself_safetensors_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.draft(KEY) as draft:
        (draft / "a.safetensors").write_bytes(struct.pack("<Q", 2**40) + json.dumps({}).encode())
        text = refused(store, draft)
    assert text.startswith("the file 'a.safetensors' of stage 'distill' is no safetensors file (")
    assert text.endswith("); nothing was stored. Write it with safetensors, or give it another ending")


def test_symlinks_and_other_odd_things_in_a_draft_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "outside").mkdir()
    for name, target in (("link", "outside"), ("dead", "nowhere")):
        with store.draft(KEY) as draft:
            (draft / "sub").mkdir()
            (draft / "sub" / name).symlink_to(tmp_path / target)
            assert refused(store, draft) == (
                f"stage 'distill' left 'sub/{name}' in its draft, which is a symlink; nothing was stored. Copy the "
                "file itself there"
            )
    with store.draft(KEY) as draft:
        os.mkfifo(draft / "pipe")
        assert "left 'pipe' in its draft, which is neither a file nor a folder;" in refused(store, draft)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_a_stage_cannot_write_the_manifest(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    with store.draft(KEY) as draft:
        (draft / name).write_text("{}")
        assert refused(store, draft) == (
            f"stage 'distill' wrote the file {name!r}, which KDQ writes itself; nothing was stored. Rename it"
        )
