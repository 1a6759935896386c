"""The file that further rules would make of the same trained weights; KDQ writes it and runs it.

What: with a quantizer that does not train, the file is the one that the recipe gives with the rules. With one that
    trains, the trained weights and ranges stay, tensors with other bits get ranges from the calibration batches, and no
    further training follows: training usually gives more.
Limits: KDQ makes no such file for a plug-in's own stage in place of `quantize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from kdq_core.grids.fake import FakeQuantize
from kdq_core.intervals import paired
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert
from kdq_core.quantization.prepare import HOLDER, set_phase
from kdq_core.timing.turns import measure_times
from kdq_core.work.effects import Patched
from kdq_core.work.explaining import Sums
from kdq_core.work.quantized import prepared
from kdq_core.work.quantizing import calibrate, finished, started
from kdq_core.work.shown import request_of

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from kdq_core.plugins.kinds import Target
    from kdq_core.recipe.spec import Rule
    from kdq_core.work.work import StageWork

SECONDS = 0.5
"""How long all calls take that time the file."""


def with_rules(work: StageWork, rules: Sequence[Rule]) -> StageWork:
    """The same work, for the recipe with further rules."""
    asked = request_of(work)
    spec = asked.recipe.quantize
    spec = spec.model_copy(update={"rules": (*spec.rules, *rules)})
    return replace(work, _asked=asked.with_recipe(asked.recipe.model_copy(update={"quantize": spec})))


def patched(work: StageWork, trained: GraphModule) -> GraphModule:
    """Quantize the student by the rules of `work`, without training.

    Args:
        work: of the stage `quantize`, from `with_rules`.
        trained: the quantized student of the run.
    """
    device = torch.device("cpu")
    if not work.quantizer.trains:
        model = started(work, device)[1]
        finished(work, model, device)
    else:
        model = prepared(work, capture(work.model("student"), work.example()))
        own = {name: x for name, x in trained.state_dict().items() if not name.startswith(f"{HOLDER}.")}
        model.load_state_dict(own, strict=False)
        calibrate(work, model, device)
        kept = {fake.place.name: fake for fake in _fakes(trained)}
        for fake in _fakes(model):
            before = kept.get(fake.place.name)
            if before is not None and before.place == fake.place:
                fake.load_state_dict(before.state_dict())
    set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
    return model.eval()


def _fakes(model: GraphModule) -> list[FakeQuantize]:
    return [module for module in model.modules() if isinstance(module, FakeQuantize)]


def write(work: StageWork, model: GraphModule, path: Path) -> None:
    """Write the file of a quantized student; `work` is of the stage that quantizes it."""
    work.target.export(convert(model), work.example(), path)


def measured(
    target: Target,
    files: Sequence[Path],
    outputs: Sequence[np.ndarray],
    truth: np.ndarray | None,
    inputs: tuple[np.ndarray, ...],
) -> Patched:
    """Quality, size and time of the patched file.

    Args:
        target: runs the files.
        files: the patched file, the int8 file of the run, and the float file.
        outputs: first output of the patched and of the float file for the test split, each `[N, ...]`.
        truth: classes `[N]`, below 0 where a sample has none; `None` without classes.
        inputs: one sample, each `[1, ...]`.
    """
    openers = [partial(target.session, path, threads=1) for path in files]
    own, shipped, student = measure_times(openers, [inputs], seconds=SECONDS)[0]
    speedup = student.ratio_to(own)
    sums = Sums()
    sums.add(*map(torch.tensor, outputs))  # a copy: kept predictions are read-only
    quality: dict[str, float | None] = {"quality": None}
    if truth is not None:
        ours, theirs = ((given.argmax(1) == truth)[truth >= 0] for given in outputs)
        low, high = paired(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(ours))
        quality = {"quality": float(ours.mean()), "low": low, "high": high}
    return Patched.model_validate({
        **quality, "db": sums.db,
        "bytes": files[0].stat().st_size, "ms": 1e3 * own.quantile(0.5).value,
        "shipped_ms": 1e3 * shipped.quantile(0.5).value, "speedup": speedup.value, "speedup_low": speedup.low,
        "speedup_high": speedup.high,
    })  # fmt: skip
