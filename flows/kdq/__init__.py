"""KDQ from Python: quantize or compress a model in hand.

```python
import kdq

result = kdq.quantize(model, calibration, test)
print(result.report())
logits = result.predict(x)
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.errors import KdqError as KdqError

if TYPE_CHECKING:
    from kdq.result import Result
    from kdq_core.recipe.spec import Recipe, Site

__all__ = ["KdqError", "compress", "quantize", "run"]


def quantize(
    model: Any,
    calibration: Any,
    test: Any = None,
    *,
    bits: int = 8,
    target: str | None = None,
    quantizer: str | None = None,
    qat: bool = False,
    epochs: int | None = None,
    loss: Any = None,
    dynamic: Mapping[str, Sequence[int]] | None = None,
    register: str | None = None,
    name: str = "model",
    site: Site | None = None,
) -> Result:
    """Quantize a trained model: calibrate, export, measure.

    Args:
        model: a trained `torch.nn.Module`; it stays as it is.
        calibration: samples like those the model will see: a data set, a `DataLoader`, arrays (inputs, labels), or an
            iterable of tensors, tuples or dicts.
        test: labelled samples to measure with; by default KDQ holds a tenth of `calibration` out.
        bits: of the weights.
        target: the runtime, such as `"openvino"`; by default ONNX Runtime.
        quantizer: its name, as `kdq plugins list` has it.
        qat: train the quantized model, on the labels.
        epochs: of that training.
        loss: `"cross-entropy"`, `"bce"`, `"mse"`, `"ctc"`, or a function of (outputs, targets); by default by the
            labels' type.
        dynamic: axes beside the batch whose size may change, by input, such as `{"tokens": [1]}`.
        register: name of the model in the registry; `None` registers nothing.
        name: name of the run.
        site: where to run it; by default the site that the environment describes.

    Raises:
        KdqError: the request is wrong, or a stage failed; the message says what to do.
    """
    from kdq_flows import in_hand
    from kdq_flows.own import GATES, PTQ, ending, quantize_section, written

    there = _site(site)
    data = {"whole": calibration} if test is None else {"train": calibration, "test": test}
    section = in_hand.workload(there, student=model, data=data, loss=loss, dynamic=dynamic)
    recipe = {
        "name": name,
        "workload": section,
        "student": {"source": "checkpoint", "file": written(model.state_dict(), there)},
        "quantize": quantize_section(quantizer or ("minmax-qat" if qat else "static"), bits, epochs),
        **ending(PTQ, target, register, [] if quantizer else GATES),
    }
    return run(recipe, site=there)


def compress(
    student: Any,
    teacher: Any,
    train: Any,
    test: Any = None,
    *,
    validation: Any = None,
    bits: int = 8,
    target: str | None = None,
    quantizer: str | None = None,
    distill: Any = None,
    epochs: int | None = None,
    trained_teacher: bool = True,
    loss: Any = None,
    dynamic: Mapping[str, Sequence[int]] | None = None,
    register: str | None = None,
    name: str = "model",
    site: Site | None = None,
) -> Result:
    """Distil a student from a teacher, quantize it with the teacher still teaching, export and measure it.

    Args:
        student: a `torch.nn.Module`, of which KDQ takes the architecture.
        teacher: the teacher; it stays as it is.
        train: the training samples; see `quantize` for the forms.
        test: samples to measure with; by default KDQ holds a tenth of `train` out.
        validation: samples for the curves; by default KDQ holds a tenth of `train` out.
        bits: of the weights.
        target: the runtime, such as `"openvino"`.
        quantizer: its name.
        distill: name of a distiller, or the recipe's section `distill` as a dict.
        epochs: of the student; the quantized student gets a third.
        trained_teacher: the teacher is trained; false lets KDQ train it first.
        loss: see `quantize`.
        dynamic: see `quantize`.
        register: name of the model in the registry; `None` registers nothing.
        name: name of the run.
        site: where to run it.

    Raises:
        KdqError: the request is wrong, or a stage failed.
    """
    from kdq_flows import in_hand
    from kdq_flows.own import CHAIN, GATES, TAUGHT, ending, quantize_section, written

    there = _site(site)
    data = {"train": train, "test": test, "validation": validation} if test is not None else {"whole": train}
    section = in_hand.workload(there, student=student, teacher=teacher, data=data, loss=loss, dynamic=dynamic)
    member = {"source": "checkpoint", "file": written(teacher.state_dict(), there)} if trained_teacher else {}
    fit = {"fit": {"epochs": epochs}} if epochs else {}
    recipe = {
        "name": name,
        "workload": section,
        "teacher": {"members": [member], **({} if trained_teacher else fit)},
        "distill": {**({"use": distill} if isinstance(distill, str) else distill or {}), **fit},
        "quantize": quantize_section(quantizer, bits, max(1, epochs // 3) if epochs else None),
        **ending(CHAIN, target, register, [] if quantizer else [TAUGHT, *GATES]),
    }
    return run(recipe, site=there)


def run(recipe: Recipe | Mapping[str, Any] | str | Path, *, site: Site | None = None, server: bool = False) -> Result:
    """Run a recipe, given as a dict, as the path of a file, or as `Result.recipe`.

    Args:
        recipe: the recipe.
        site: where to run it; by default the site that the environment describes.
        server: run it with Prefect, as `kdq run` does.

    Raises:
        KdqError: the request is wrong, or a stage failed.
    """
    from kdq.result import Result
    from kdq_core.reading.checks import load_recipe
    from kdq_flows import compress as run_recipe
    from kdq_flows.own import checked

    if isinstance(recipe, str | Path):
        found = load_recipe(Path(recipe))
    else:
        found = checked(recipe) if isinstance(recipe, Mapping) else recipe
    there = _site(site)
    return Result(found, run_recipe(found, there, server=server), there)


def _site(site: Site | None) -> Site:
    from kdq_core.recipe.spec import Site

    return site or Site.from_environment()
