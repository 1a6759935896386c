"""What a user can get wrong about a model, its data or its bits: told by `kdq validate` or the stage, in one sentence.

What is only odd (a constant activation, a row of zeros) must give right results with every quantizer.
"""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from kdq_core.errors import KdqError, RecipeError, StageError
from kdq_core.plan.plan import asked_of
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Kind, Plugin, Workload
from kdq_core.plugins.wiring import wire
from kdq_core.quantization.convert import convert
from kdq_core.reading.checks import load_recipe
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.checks import check_weights
from kdq_core.store.records import Checkpoint, Manifest
from kdq_core.store.store import Entry
from kdq_core.tensors import Batch
from kdq_core.work.quantized import prepared_student
from kdq_core.work.work import StageWork

CATALOG = Catalog.load()
POST_TRAINING = ("static", "weight-only", "dynamic")
TRAINED = ("minmax-qat", "lsq", "pact", "dorefa", "fixed-step", "power-of-two", "apot", "codebook")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(F.relu(self.body(F.relu(self.stem(x)))))


class Odd(Net):
    """A row of zeros in each layer; `side` reads 3 and `dark` reads 0 whatever the input."""

    def __init__(self):
        super().__init__()
        self.side, self.dark = nn.Linear(8, 4), nn.Linear(8, 4)
        with torch.no_grad():
            for layer in (self.stem, self.body, self.head, self.side, self.dark):
                layer.weight[1] = 0

    def forward(self, x):
        return super().forward(x) + self.side(x * 0 + 3) + self.dark(x * 0)


class Gate(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 4), Gate())

    def forward(self, x):
        return self.layers(x)


class Fixed(Net):
    def forward(self, x):
        return super().forward(x.reshape(2, 8))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return (x * self.factor)[:, :4]


class Data(Workload):
    """Random vectors; its models are set by the test."""

    size: int = 192
    wrong: float | None = None
    validation: int = 32

    def fingerprint(self) -> str:
        return "0" * 64

    def student(self) -> nn.Module:
        return MODELS[-1]()

    teacher = student

    def batches(self, split: Any, *, batch_size: int, seed: int = 0, **_asked: Any) -> Any:
        count = self.size if split == "train" else self.validation
        x = torch.randn(count, 8, generator=torch.Generator().manual_seed(len(split)))
        if self.wrong is not None and split == "train":
            x[70, 5] = x[100, 2] = self.wrong
        for ids in torch.arange(count).split(batch_size) if count else ():
            yield Batch((x[ids],), x[ids, :4].argmax(1), ids)

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        return F.cross_entropy(outputs.logits, batch.targets)


MODELS: list[type[nn.Module]] = [Net]


class Installed(Catalog):
    """The catalog, with the workload above in place of `digits`."""

    def build(self, kind: Kind, name: str, options: Any = None, **where: Any) -> Plugin:
        return Data(**options) if kind == "workload" else super().build(kind, name, options, **where)


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the stage `quantize` on a new model; gives the work of the next stage."""

    def walk(section: dict[str, Any], model: type[nn.Module] = Net, **data: Any) -> StageWork:
        monkeypatch.setitem(globals(), "MODELS", [model])
        torch.manual_seed(0)
        start = model()
        save_file(start.state_dict(), tmp_path / "start.safetensors")
        record = Checkpoint(slot="student", weights="start.safetensors", parameters=0)
        entry = Entry(tmp_path, Manifest(stage="distill", key="0" * 64, parts={}, record=record, files=()))
        asks = {"name": "bad", "workload": {"use": "digits", "options": data}, "quantize": section}
        recipe = {**asks, "teacher": {"cache": {"enabled": False}}}
        catalog = Installed(CATALOG.plugins, CATALOG.quarantined)
        asked = asked_of(Recipe.model_validate(recipe), Site(home=tmp_path, threads=1), catalog)
        by_title = {one.title: one for one in wire(asked, catalog)}
        ports = by_title["quantize"].parents
        work = StageWork(
            wired=by_title["quantize"],
            _asked=asked,
            parents=dict.fromkeys(ports, entry),
            draft=tmp_path,
            scratch=tmp_path,
            emit=lambda _event: None,
        )
        made = entry.manifest.model_copy(update={"record": work.wired.stage.run(work)})
        check_weights(tmp_path, ["weights.safetensors"], "quantize")
        return replace(work, wired=by_title["export"], parents={**work.parents, "quantized": Entry(tmp_path, made)})

    return walk


HERE = inspect.getsourcefile(Gate)
BRANCH = inspect.getsourcelines(Gate)[1] + 2
NOT_FINITE = (
    "training batch 2 of the calibration is not finite: its input holds {} in 2 of 64 samples, first in sample 70; "
    "mend or drop these samples in the workload"
)
EMPTY = "the workload gave no training batch to calibrate with; check its split 'train'"
NO_LAYER = "the model has no layer that the target can quantize; it needs at least one conv or linear"
WRONG: dict[str, tuple[type[KdqError], dict[str, Any], str]] = {
    "a branch on a value": (
        StageError, {"model": Gated},
        "model 'Gated' cannot be captured as a graph: module 'layers.1' needs the value of a tensor, which a graph "
        f"does not know ({HERE}:{BRANCH}: if x.sum() > 0:); compute both ways and choose with torch.where, keep "
        "numbers as tensors in place of .item(), or move the decision out of the model",
    ),
    "a fixed batch": (
        StageError, {"model": Fixed},
        "model 'Fixed' cannot be captured as a graph: its forward works only for a batch of 2 samples, the size of the "
        "example batch; take sizes from x.shape, or write -1 for the batch",
    ),
    "NaN": (StageError, {"data": {"wrong": float("nan")}}, NOT_FINITE.format("nan")),
    "infinity": (StageError, {"data": {"wrong": float("-inf")}}, NOT_FINITE.format("-inf")),
    "no batch": (StageError, {"data": {"size": 0}}, EMPTY),
    "no validation": (
        StageError, {"data": {"validation": 1}},
        "the workload's split 'validation' gives 1 of the two samples that tracing a model takes; put more into it",
    ),
    "no layer": (StageError, {"model": Plain}, NO_LAYER),
    "no layer for a rule": (StageError, {"model": Plain, "rules": [{"match": "conv", "skip": True}]}, NO_LAYER),
    "all skipped": (
        RecipeError, {"rules": [{"match": "*", "skip": True}]},
        "quantize.rules skip every layer that can be quantized; leave at least one",
    ),
    "a rule for nothing": (
        RecipeError, {"rules": [{"match": "bodi", "weights": 4}]},
        "quantize.rules[0]: no operator matches 'bodi'; did you mean 'body'? The model has body, head, stem; types of "
        "operator: input, linear.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "asked", "text"), WRONG.values(), ids=WRONG)
def test_the_stage_says_what_is_wrong(kind: type[KdqError], asked: dict[str, Any], text: str, walk: Any) -> None:
    with pytest.raises(kind) as caught:
        walk({"use": "static", "rules": asked.get("rules", [])}, asked.get("model", Net), **asked.get("data", {}))
    assert str(caught.value) == text


@pytest.mark.parametrize(("data", "text"), [({"size": 0}, EMPTY), ({"wrong": float("nan")}, NOT_FINITE.format("nan"))])
@pytest.mark.parametrize("section", [{"use": "weight-only"}, {"use": "lsq", "fit": {"epochs": 1}}])
def test_data_that_cannot_be_used_is_refused_for_every_quantizer(
    section: dict[str, Any], data: dict[str, Any], text: str, walk: Any
) -> None:
    with pytest.raises(StageError) as caught:
        walk(section, **data)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["static", "weight-only", "lsq"])
def test_calibration_batches_have_their_own_size(name: str, walk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def noted(batch: Batch, number: int) -> None:
        seen.append((number, len(batch.ids)))

    monkeypatch.setattr("kdq_core.work.quantizing.check_finite", noted)
    fit = {"fit": {"epochs": 1, "batch_size": 96}} if name == "lsq" else {}
    walk({"use": name, "calibration_batches": 4, "calibration_batch_size": 50} | fit)
    assert seen == [(1, 50), (2, 50), (3, 50), (4, 42)]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("weights: 1", "key 'quantize.weights' is 1; allowed: a whole number, 2 to 8"),
        ("weights: 9", "key 'quantize.weights' is 9; allowed: a whole number, 2 to 8"),
        ("activations: 1", "key 'quantize.activations' is 1; allowed: a whole number, 2 to 8"),
        ("calibration_batch_size: 0",
         "key 'quantize.calibration_batch_size' is 0; allowed: a whole number, 1 to 1000000"),
        ("edges: 9", "key 'quantize.edges' is 9; allowed: a whole number, 2 to 8"),
        ("rules: [{match: conv, weights: 9}]",
         "key 'quantize.rules[0].weights' is 9; allowed: a whole number or null, 2 to 8"),
        ("rules: [{match: conv, weights: 1.5}]",
         "key 'quantize.rules[0].weights' is 1.5; allowed: a whole number or null, 2 to 8"),
        ("rules: [{match: conv}]", "key 'quantize.rules[0]': a rule says 'weights', 'activations' or 'skip'"),
        ("rules: [{weights: 4}]", "key 'quantize.rules[0].match' is missing; it must be text"),
    ],
)  # fmt: skip
def test_validate_says_which_bits_and_rules_there_are(
    line: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(f"name: x\nworkload: digits\nquantize:\n  use: lsq\n  {line}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("r.yaml"))
    assert str(caught.value) == f"r.yaml:5: {text}"


@pytest.mark.parametrize("name", POST_TRAINING + TRAINED)
def test_rows_of_zeros_and_constant_activations_are_no_trouble(name: str, walk: Any) -> None:
    still = {"epochs": 1, "learning_rate": 1e-9, "weight_decay": 0.0}
    work = walk({"use": name} if name in POST_TRAINING else {"use": name, "fit": still}, Odd)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))
    student, prepared = work.model("student"), prepared_student(work)
    with torch.no_grad():
        asked, simulated, shipped = student(x), prepared(x), convert(prepared)(x)
    most = float(asked.abs().max())
    step = most / 50  # no quantizer has less than 50 steps from 0 to there
    torch.testing.assert_close(shipped, simulated, rtol=0, atol=step)
    torch.testing.assert_close(shipped, asked, rtol=0, atol=most * 0.1)
    zeros = sum(layer.bias[1].item() for layer in (student.head, student.side, student.dark))
    torch.testing.assert_close(shipped[:, 1], torch.full((64,), zeros), rtol=0, atol=step)
