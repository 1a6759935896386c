"""Every house evaluator passes the evaluators' kit, stays light to import, and the kit sees broken promises."""

import importlib
import subprocess
import sys
from typing import ClassVar, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from torch import nn

from kdq_core.api import Evaluator, Field, Metric, OperatorCoverage
from kdq_core.testing import check_evaluator
from kdq_evaluators.cost import Cost
from kdq_evaluators.coverage import Coverage
from kdq_evaluators.detection import Detection
from kdq_evaluators.latency import Latency
from kdq_evaluators.parity import Parity
from kdq_evaluators.plugin import kdq_evaluators
from kdq_evaluators.quality import Quality
from kdq_evaluators.ranking import Ranking
from kdq_evaluators.robustness import Robustness
from kdq_evaluators.size import Size
from kdq_evaluators.transcription import Transcription
from kdq_evaluators.translation import Translation

EVALUATORS = (Coverage, Latency, Parity, Quality, Ranking, Robustness, Size)
OTHERS = (Cost, Detection, Transcription, Translation)  # they need other files, data or packages
TIMED = tuple(f"{name}{size}" for name in Latency.metrics for size in ("", "/8", "/32"))


@pytest.fixture
def subjects(subject):
    operators = (OperatorCoverage(path="p", operator="conv", kernel="QLinearConv", int8=True, macs=5),)
    found = (
        subject("int8", lambda x: x, operators=operators, output_scales=(0.1,), simulation=nn.Identity()),
        subject("student", lambda x: x),
    )
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    for one in found:
        onnx.save(helper.make_model(helper.make_graph([], "g", [info], [info])), one.path)
    return found


@pytest.fixture
def batches(table):
    random = np.random.default_rng(0)
    return table(random.normal(size=(30, 4)), random.integers(0, 4, 30))


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_every_evaluator_keeps_the_promises(evaluator, subjects, batches):
    plugin = evaluator(**({"seconds": 0.02} if evaluator is Latency else {}))
    check_evaluator(plugin, *subjects, batches, timed=TIMED)
    assert plugin.evaluate(*subjects, batches), "the kit should have had metrics to look at"


def test_every_class_that_is_registered_exists():
    specs = list(kdq_evaluators())
    classes = [getattr(importlib.import_module(s.target.split(":")[0]), s.target.split(":")[1]) for s in specs]
    assert sorted(classes, key=lambda c: c.__name__) == sorted((*EVALUATORS, *OTHERS), key=lambda c: c.__name__)
    assert [s.name for s in specs] == [one.__name__.lower() for one in classes]


def test_the_modules_import_nothing_heavy():
    modules = ", ".join(f"kdq_evaluators.{one.__name__.lower()}" for one in (*EVALUATORS, *OTHERS))
    code = (
        f"import sys, kdq_workloads.digits, kdq_distillers.logit_kd, {modules};"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'torchmetrics', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Broken(Evaluator):
    metrics: ClassVar[tuple[str, ...]] = ("fine", "Top-1")
    name: str = Field(default="fine", description="of the metric")
    unit: str = Field(default="count", description="of the metric")
    value: float = Field(default=1.0, description="of the metric")
    low: float | None = Field(default=None, description="lower end of the interval")
    drifts: bool = Field(default=False, description="give another value at each call")
    writes: bool = Field(default=False, description="change the file")
    gives: Literal["tuple", "list", "numbers"] = Field(default="tuple", description="what it returns")

    def evaluate(self, candidate, baseline, batches):
        value = self.value
        if self.drifts:
            value = float(len(list(candidate.path.parent.glob("drift*"))))
            (candidate.path.parent / f"drift{value}").touch()
        if self.writes:
            candidate.path.write_bytes(b"changed")
        metric = Metric(name=self.name, value=value, unit=self.unit, direction="lower", low=self.low)
        return {"tuple": (metric,), "list": [metric], "numbers": (value,)}[self.gives]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "Top-1"}, "a metric's name should be snake_case, but it is 'Top-1'"),
        ({"unit": ""}, "metric 'fine' should have a unit, but has none"),
        ({"value": float("nan")}, "metric 'fine' should be finite, but it is nan"),
        ({"low": 2.0}, "metric 'fine' should lie in its interval, but 1.0 does not"),
        ({"drifts": True}, "a second evaluation should give the same 'fine', but 0.0 became 1.0"),
        ({"writes": True}, "an evaluator should not change a file, but it did"),
        ({"gives": "list"},
         "Broken.evaluate should return a tuple of metrics, or () if it does not apply, but it returned a value of "
         "type list"),
        ({"gives": "numbers"},
         "Broken.evaluate should return a tuple of metrics, but one of them is of type float"),
        ({"name": "other"},
         "Broken should give only the metrics that its class names, but it gives 'other'; add it to `metrics`"),
    ],
)  # fmt: skip
def test_the_kit_names_the_broken_promise(options, sentence, subjects, batches):
    check_evaluator(Broken(), *subjects, batches)
    with pytest.raises(AssertionError) as caught:
        check_evaluator(Broken(**options), *subjects, batches)
    assert str(caught.value).startswith(sentence)


class Writing(Evaluator):
    def evaluate(self, candidate, baseline, batches):
        candidate.file("rows.txt").write_text(candidate.role)
        return (Metric(name="rows", value=len(candidate.predict(batches)[0]), unit="count", direction="neither"),)


def test_the_kit_gives_an_evaluator_a_folder_to_write_to(subjects, batches, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    check_evaluator(Writing(), *subjects, batches)
    assert sorted(tmp_path.rglob("*")) == before
