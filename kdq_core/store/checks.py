"""Checks of a draft before it becomes an entry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kdq_core.errors import StageError
from kdq_core.store.records import Manifest

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
NOTHING = "nothing was stored"
"""Every refusal says it: KDQ deletes the draft."""


def names_in(draft: Path, stage: str) -> list[str]:
    """List the files of `draft` in order, relative to it.

    Raises:
        StageError: something there is neither a file nor a folder, or has a name that KDQ writes itself.
    """
    names = []
    for path in sorted(draft.rglob("*")):
        name = path.relative_to(draft).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            what = "a symlink" if path.is_symlink() else "neither a file nor a folder"
            raise StageError(
                f"stage {stage!r} left {name!r} in its draft, which is {what}; {NOTHING}. Copy the file itself there"
            )
        if name in (MANIFEST, SEAL):
            raise StageError(f"stage {stage!r} wrote the file {name!r}, which KDQ writes itself; {NOTHING}. Rename it")
        if path.is_file():
            names.append(name)
    return names


def sealed(manifest: Manifest) -> tuple[Manifest, bytes]:
    """Write the manifest as text, and give it as KDQ will read it again, with the text.

    Raises:
        StageError: a number is not finite, or the text cannot be read again.
    """
    asked = manifest.model_dump(mode="json", include={"record", "parts"})
    field, value = next(_not_finite(asked), ("", 0.0))
    if field:
        raise StageError(
            f"stage {manifest.stage!r} gave {value!r} as {field!r}; {NOTHING}. Only metrics and curves may be "
            "NaN or infinite: check what the stage computes there, or give it as a Metric"
        )
    text = manifest.model_dump_json(indent=1).encode()
    try:
        return Manifest.model_validate_json(text), text
    except ValidationError as error:
        first = error.errors()[0]
        raise StageError(
            f"the record {manifest.record.type!r} of stage {manifest.stage!r} cannot be read again as it is written "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}); {NOTHING}. "
            "Let every field of its class read what it writes"
        ) from error


def _not_finite(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield name, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, one in inner:
        yield from _not_finite(one, f"{name}.{part}" if name else str(part))


def check_weights(draft: Path, names: Sequence[str], stage: str) -> None:
    """Refuse safetensors files that hold NaN or infinity: a model with such weights is useless.

    It reads each memory-mapped tensor once. A tensor of only 0 and -infinity is an attention mask, and passes.

    Raises:
        StageError: a tensor is not finite, which the message names; or a file is no safetensors file.
    """
    files = [name for name in names if name.endswith(".safetensors")]
    if not files:
        return
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(draft / file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    _check_tensor(opened.get_tensor(name), f"the tensor {name!r} of {file!r} in stage {stage!r}")
        except SafetensorError as error:
            raise StageError(
                f"the file {file!r} of stage {stage!r} is no safetensors file ({error}); {NOTHING}. Write it with "
                "safetensors, or give it another ending"
            ) from error


def _check_tensor(tensor: Tensor, what: str) -> None:
    import torch

    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = flat.float() if flat.element_size() == 1 else flat  # torch.aminmax does not take 8-bit floats
    low, high = (float(end) for end in torch.aminmax(flat))
    if math.isfinite(low) and math.isfinite(high):
        return
    if (low, high) == (-math.inf, 0.0) and bool(((flat == 0) | (flat == low)).all()):
        return
    found = high if math.isfinite(low) else low
    raise StageError(
        f"{what} holds {found!r}; {NOTHING}. Lower learning_rate, set clip_norm, or check the data and the given "
        "weights for NaN"
    )
