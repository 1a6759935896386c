"""What a user gets wrong between teacher and student, through the stages of a pipeline: the exact error, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

from kdq_core.errors import KdqError, RecipeError, StageError
from kdq_core.plugins.catalog import Catalog
from kdq_core.tensors import Batch, Outputs

FIT = {"epochs": 1, "batch_size": 32}
ONLINE = {"enabled": False}
HOUSE = Catalog.load()
CLASSES = {name: HOUSE.load_class(entry) for name, entry in HOUSE.names("distiller").items() if entry.house}
OF_FEATURES = sorted(name for name, found in CLASSES.items() if found.features == "pairs")  # type: ignore[attr-defined]
OF_OUTPUTS = sorted(set(CLASSES) - set(OF_FEATURES))


@dataclass
class Case:
    """A recipe and what becomes of it.

    Attributes:
        name: of the test.
        stage: that fails, as the first one.
        told: the whole error; `{file}` stands for the teacher's file.
        use: the distiller, or the whole section.
        teacher: classes of the file the teacher is read from, or the name of another one.
        cache: the recipe's section.
        options: of the workload.
        error: its class.
    """

    name: str
    stage: str
    told: str
    use: str | dict[str, Any] = "logit-kd"
    teacher: Any = 3
    cache: dict[str, Any] = field(default_factory=lambda: {"views": 1})
    options: dict[str, Any] = field(default_factory=dict)
    error: type[KdqError] = StageError


def other_classes(name: str, batch: int = 2) -> str:
    if name == "token-kd":
        return (
            f"distiller 'token-kd' compares logits [samples, positions, classes] of one shape, but the student's are "
            f"({batch}, 3) and the teacher's ({batch}, 5); give both models one tokenizer and the same classes"
        )
    return (
        f"distiller '{name}' compares logits of one shape, but the student's are ({batch}, 3) and the teacher's "
        f"({batch}, 5); give both models the same classes and the same batch"
    )


def not_finite(name: str, what: str, count: int, where: str = "") -> str:
    return (
        f"distiller '{name}' needs finite teacher {what}, but {count} of {count} {where}are NaN or infinite; train the "
        "teacher with a lower learning rate or with 'clip_norm', or check the file it was read from"
    )


def taps(*pair: str) -> dict[str, Any]:
    return {"losses": [{"use": "fitnet", "taps": [list(pair)]}]}


FIVE = {"teacher_classes": 5}
GAP = {"losses": [{"use": "logit-kd", "weight": {"schedule": "gap", "start": 1, "end": 0}}]}
TUPLE = (
    "tap 'lstm' of the {} gives a 'tuple', not a tensor; tap a module that gives one tensor, such as the layer behind "
    "it, or let the module give one"
)
CASES = [
    *(Case(f"classes {name}", "train_teacher", other_classes(name), name, 5, ONLINE, FIVE) for name in OF_OUTPUTS),
    Case("classes, before it trains", "train_teacher", other_classes("logit-kd"), teacher=None, options=FIVE),
    Case("classes, kept", "train_teacher", other_classes("logit-kd"), teacher=5, options=FIVE),
    Case("classes, onnx", "train_teacher", other_classes("logit-kd"), teacher="five.onnx", cache=ONLINE),
    Case("classes, onnx, kept", "train_teacher", other_classes("logit-kd"), teacher="five.onnx"),
    Case("classes, a schedule", "train_teacher",
         "the gap of a schedule is between outputs of one shape, but the student's are (2, 3) and the teacher's "
         "(2, 5); give both models the same classes", GAP, 5, options=FIVE),
    Case("classes, of a file", "train_teacher",
         "the weights in {file!r} do not fit the module of the workload's teacher(): 2 keys of another shape "
         "(head.weight (5, 32) where the module has (3, 32), head.bias (5,) where the module has (3,)); name the "
         "'factory' in 'teacher.members' that makes the file's own module, or another file", teacher=5),
    *(Case(f"NaN {name}", "train_teacher", not_finite(name, "logits", 6), name, "head.nan", ONLINE)
      for name in OF_OUTPUTS),
    *(Case(f"NaN {name}", "train_teacher", not_finite(name, "features", 64, "of the pair 'relu~relu' "), name,
           "conv.nan") for name in OF_FEATURES),
    Case("NaN, kept", "train_teacher", not_finite("logit-kd", "logits", 6), teacher="head.nan"),
    Case("no labels", "train_teacher",
         "distiller 'dkd' needs a label for each sample, but the workload gave a batch of 2 samples without labels; "
         "label the data, or use a distiller that needs none, such as 'logit-kd'",
         "dkd", options={"labels": "every second batch"}),
    Case("no labels for a teacher", "train_teacher",
         "the teacher is trained on labels, but no batch of the workload's split 'train' has any; label some, or name "
         "a teacher that is trained already in 'teacher.members', from a checkpoint or an ONNX file",
         teacher=None, options={"labels": "none"}),
    Case("no labels for a control", "train_teacher",
         "'control' asks for a student without the teacher, which needs labels, but no batch of the workload's split "
         "'train' has any; label some, or drop 'control'",
         {"use": "logit-kd", "control": True}, options={"labels": "none"}),
    Case("all of the classes kept as the top", "train_teacher",
         "'teacher.cache.top_k' is 3, but the teacher's logits have 3 classes; ask for fewer, or leave top_k out",
         cache={"views": 1, "top_k": 3}),
    Case("a loss that is not finite", "train_teacher",
         "the loss of a student that is not trained yet is not finite on the first two training samples (hard nan); "
         "look for NaN in the data, and for a division by zero in the workload's loss or the distiller",
         options={"broken": True}),
    Case("no such tap of the student", "train_teacher",
         "taps of distiller 'fitnet': no module of the student (Sequential) matches the tap 'cnov'; nearest: 'conv'",
         taps("cnov", "conv"), cache=ONLINE, error=RecipeError),
    Case("no such tap of the teacher", "train_teacher",
         "taps of distiller 'fitnet': no module of the teacher (Sequential) matches the tap 'blocks.0'; nearest: "
         "'conv', 'bn', 'relu'",
         taps("conv", "blocks.0"), error=RecipeError),
    Case("no such layer to start from", "train_teacher",
         "no module of the teacher (Sequential) matches the layer of distill.transfer 'haed'; nearest: 'head'",
         {"transfer": {"layers": [["head", "haed"]]}}, error=RecipeError),
    Case("a tuple of the student", "train_teacher", TUPLE.format("student"), taps("lstm", "conv"),
         options={"recurrent": "student"}, error=RecipeError),
    Case("a tuple of the teacher", "train_teacher", TUPLE.format("teacher"), taps("conv", "lstm"), "lstm",
         options={"recurrent": "teacher"}, error=RecipeError),
]  # fmt: skip


class Recurrent(nn.Module):
    """Rows of the image through an LSTM, whose output is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.head = nn.Conv2d(1, 1, 1), nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.conv(x)[:, 0])[0][:, -1])
        return logits


@pytest.fixture(scope="module")
def catalog(tiny: Catalog, installed: Any) -> Catalog:
    """The tiny workload, either of whose models may be recurrent."""
    base: Any = type(tiny.build("workload", "digits", {}))

    class TinyOrRecurrent(base):  # type: ignore[misc]
        recurrent: str = ""
        broken: bool = False

        def student(self) -> nn.Module:
            return Recurrent() if self.recurrent == "student" else super().student()

        def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
            loss: Tensor = super().loss(outputs, batch)
            return loss * float("nan") if self.broken else loss

        def teacher(self) -> nn.Module:
            return Recurrent() if self.recurrent == "teacher" else super().teacher()

    return installed(TinyOrRecurrent)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def file_of(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """Files of teachers: of so many classes, with a NaN in all weights of one layer, recurrent, or in ONNX."""
    folder = tmp_path_factory.mktemp("teachers")

    def saved(what: Any) -> Path:
        layer, _, broken = str(what).partition(".")
        if broken == "onnx":
            return onnx_file(folder / what)
        options = {"recurrent": "teacher"} if what == "lstm" else {"teacher_classes": what if what == 5 else 3}
        model: Any = catalog.build("workload", "digits", options)
        weights = dict(model.teacher().state_dict())
        if broken:
            weights[f"{layer}.weight"].fill_(float("nan"))
        save_file(weights, folder / f"{what}.safetensors")
        return folder / f"{what}.safetensors"

    return saved


def onnx_file(path: Path) -> Path:
    """A linear teacher of five classes in ONNX."""
    weight = numpy_helper.from_array(np.ones((64, 5), np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])]
        for name, shape in (("x", (1, 8, 8)), ("logits", (5,)))
    ]
    graph = helper.make_graph(nodes, "teacher", *ends, initializer=[weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def run_of(stages_of: Any, home: Path, catalog: Catalog, case: Case, members: list[dict[str, Any]]) -> Any:
    return stages_of(
        home,
        catalog,
        workload={"use": "digits", "options": case.options},
        teacher={"fit": FIT, "cache": case.cache, **({"members": members} if members else {})},
        distill={"fit": FIT, **({"use": case.use} if isinstance(case.use, str) else case.use)},
        quantize={"use": "minmax-qat"},
    )


def member(path: Path) -> dict[str, Any]:
    return {"source": "onnx" if path.suffix == ".onnx" else "checkpoint", "file": str(path)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_error_names_both_sides_and_the_remedy(
    stages_of: Any, tmp_path: Path, catalog: Catalog, file_of: Callable[[Any], Path], case: Case
) -> None:
    file = None if case.teacher is None else file_of(case.teacher)
    run = run_of(stages_of, tmp_path, catalog, case, [] if file is None else [member(file)])
    names = [node.name for node in run.plan.nodes]
    for name in names[: names.index(case.stage)]:
        run.stage(name)
    with pytest.raises(case.error) as caught:
        run.stage(case.stage)
    assert str(caught.value) == case.told.replace("{file!r}", repr(str(file)))


@pytest.mark.parametrize("name", OF_FEATURES)
def test_distillers_of_hidden_layers_take_a_teacher_of_other_classes(
    stages_of: Any, tmp_path: Path, catalog: Catalog, file_of: Callable[[Any], Path], name: str
) -> None:
    """They look at no logits; together with one that does, that one is named."""
    run = run_of(stages_of, tmp_path, catalog, Case("", "", "", name, options=FIVE), [member(file_of(5))])
    for stage in ("train_teacher", "distill"):
        run.stage(stage)
    (epoch,) = run.entries["distill"].record.history
    assert 0 < epoch.values["train/loss"] < 100_000
    both = run_of(
        stages_of, tmp_path, catalog, Case("", "", "", {"losses": [name, "dist"]}, options=FIVE), [member(file_of(5))]
    )
    both.entries = run.entries
    with pytest.raises(StageError) as caught:
        both.stage("distill")
    assert str(caught.value) == other_classes("dist")


def test_members_of_different_classes_are_numbered(
    stages_of: Any, tmp_path: Path, catalog: Catalog, file_of: Callable[[Any], Path]
) -> None:
    members = [member(file_of(3)), member(file_of("five.onnx"))]
    run = run_of(stages_of, tmp_path, catalog, Case("", "", ""), members)
    with pytest.raises(StageError) as caught:
        run.stage("train_teacher")
    assert str(caught.value) == (
        "teacher 1 gives logits of shape (2, 3), teacher 2 of shape (2, 5); all members of 'teacher.members' must "
        "have the same classes"
    )


def test_what_another_teacher_said_is_not_taken_for_this_ones(
    stages_of: Any, tmp_path: Path, catalog: Catalog, file_of: Callable[[Any], Path]
) -> None:
    torch.manual_seed(1)
    runs = []
    for home in ("a", "b"):  # file_of gives new weights
        runs.append(run_of(stages_of, tmp_path / home, catalog, Case("", "", ""), [member(file_of(3))]))
        runs[-1].stage("train_teacher")
        runs[-1].stage("cache_teacher")
    ours, theirs = runs
    kept, mine = theirs.entries["cache_teacher"], ours.entries["train_teacher"].digest
    ours.entries["cache_teacher"] = kept
    work = ours.work("distill", tmp_path)
    with pytest.raises(StageError) as caught:
        work.wired.stage.run(work)
    assert str(caught.value) == (
        f"the kept teacher outputs in {str(kept.folder)!r} are of the teacher {kept.record.teacher[:12]}, but the "
        f"student learns from the teacher {mine[:12]}; delete that folder and run again: they are computed anew"
    )
    assert mine != kept.record.teacher
