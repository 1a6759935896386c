"""One teacher or several, from this pipeline, from files, and how they answer as one."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from kdq_core.errors import RecipeError, StageError
from kdq_core.plan.members import answering
from kdq_core.recipe.spec import Recipe
from kdq_core.recipe.teacher import MemberSpec, NormalizeSpec
from kdq_core.store.records import Checkpoint
from kdq_core.teachers.members import Ensemble, Normalized, read_member
from kdq_workloads.digits import Digits

RECIPE: dict[str, Any] = {"workload": {"use": "digits", "options": {"teacher_width": 16, "student_width": 16}}}
FACTORY = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


class Says(nn.Module):
    """Always the same logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, x: Tensor) -> Any:
        return self.logits.expand(len(x), -1)  # type: ignore[operator, union-attr]


def test_the_mean_of_several_is_weighted() -> None:
    both = Ensemble([Says([4.0, 0.0]), Says([0.0, 2.0])], [3.0, 1.0], "mean")
    assert both(torch.zeros(2, 1)).tolist() == [[3.0, 0.5]] * 2


def test_with_confidence_the_surer_member_counts_more() -> None:
    given, weights = np.array([[4.0, 0.0, 1.0], [0.1, 0.2, 0.0]]), np.array([1.0, 2.0])
    p = np.exp(given) / np.exp(given).sum(1, keepdims=True)
    w = weights * np.exp((p * np.log(p)).sum(1))
    both = Ensemble([Says(row) for row in given.tolist()], weights.tolist(), "confidence")
    np.testing.assert_allclose(both(torch.zeros(1, 1))[0].numpy(), (w[:, None] * given).sum(0) / w.sum(), rtol=1e-5)
    assert w[0] > w[1] / 2


@pytest.mark.parametrize("width", [(), (1,), (5, 1)])
def test_numbers_have_no_confidence(width: tuple[int, ...]) -> None:
    class Rates(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, *[1] * len(width)).expand(-1, *width)

    class Rated(Rates):
        def forward(self, x: Tensor) -> Any:
            return {"kind": torch.ones(len(x), 3), "rating": super().forward(x)}

    x = torch.arange(4.0)
    told = f"of shape {(4, *width)}, numbers without classes; use combine: mean"
    for made, what in ((Rates, "the teachers give outputs"), (Rated, "the task 'rating' has outputs")):
        with pytest.raises(StageError) as caught:
            Ensemble([made(), made()], [1.0, 1.0], "confidence")(x)
        text = str(caught.value)
        assert text.startswith(
            f"'combine: confidence' in 'teacher' asks how sure each teacher is of its class, but {what}"
        )
        assert text.endswith(told)
        Ensemble([made(), made()], [1.0, 1.0], "mean")(x)


def test_members_with_other_classes_are_named() -> None:
    with pytest.raises(StageError) as caught:
        Ensemble([Says([1.0, 0.0]), Says([1.0, 0.0, 0.0])], [1.0, 1.0], "mean")(torch.zeros(4, 1))
    assert str(caught.value) == (
        "teacher 1 gives logits of shape (4, 2), teacher 2 of shape (4, 3); all members of 'teacher.members' must have "
        "the same classes"
    )


def test_a_teacher_may_have_a_normalisation_of_its_own() -> None:
    model = Normalized(nn.Identity(), NormalizeSpec(mean=(1.0, 2.0), std=(2.0, 4.0)))
    x = torch.full((1, 2, 3, 3), 5.0)
    assert model(x)[0, :, 0, 0].tolist() == [2.0, 0.75]
    assert "mean" not in model.state_dict()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_normalised_as_float32(dtype: torch.dtype) -> None:
    model = Normalized(nn.Identity(), NormalizeSpec(mean=(0.5,), std=(0.25,)))
    given = model(torch.tensor([[0, 1]], dtype=dtype))
    assert given.dtype == torch.float32
    assert given.tolist() == [[-2.0, 2.0]]
    assert model(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64
    assert model(torch.ones(3)).tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("means", "shape", "has"),
    [(2, (2, 3, 4, 4), "3 along axis 1"), (3, (2, 1, 4, 4), "1 along axis 1"), (3, (3,), "no axis 1")],
)
def test_a_normalisation_for_other_channels_is_refused(means: int, shape: tuple[int, ...], has: str) -> None:
    model = Normalized(nn.Identity(), NormalizeSpec(mean=(0.5,) * means, std=(1.0,) * means))
    with pytest.raises(StageError) as caught:
        model(torch.zeros(shape))
    assert str(caught.value) == (
        f"'normalize' in 'teacher.members' has {means} means, but the teacher's first input has {has} (shape "
        f"{shape}); give one mean and one std, or as many as there are channels"
    )


@pytest.mark.parametrize(
    ("member", "told"),
    [
        ({"source": "checkpoint"}, "a teacher from 'checkpoint' needs a 'file'"),
        ({"source": "onnx"}, "a teacher from 'onnx' needs a 'file'"),
        ({"file": "x"}, "a teacher from 'pipeline' reads no 'file'; write source: checkpoint or onnx"),
        (
            {"source": "registered"},
            "a teacher from 'registered' needs a 'model', such as digits/3 or digits@champion",
        ),
        ({"source": "onnx", "file": "x", "model": "a/1"}, "a teacher from 'onnx' reads no 'model'"),
        *(
            ({"source": "registered", "model": name}, "should match pattern")
            for name in ("a", "a/0", "a/b", "a@", "@b")
        ),
        ({"factory": "a:b"}, "a teacher from 'pipeline' takes no 'factory'; only a checkpoint does"),
        ({"normalize": {"mean": [1], "std": [1, 2]}}, "'mean' has 1 numbers and 'std' has 2; give both as many"),
        (
            {"normalize": {"mean": [1], "std": [0]}},
            "a 'std' is not above 0; give the standard deviation of each channel",
        ),
    ],
)
def test_a_member_that_says_too_little_or_too_much_is_refused(member: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        MemberSpec.model_validate(member)


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_teachers.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_teachers", raising=False)
    return "my_teachers:make"


@pytest.fixture
def linear(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A checkpoint of a linear teacher for digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    save_file(model.state_dict(), tmp_path / "linear.safetensors")
    return tmp_path / "linear.safetensors", model


def test_a_checkpoint_is_loaded_into_what_its_factory_makes(factory: str, linear: tuple[Path, nn.Module]) -> None:
    path, model = linear
    x = torch.randn(3, 1, 8, 8)
    read = read_member(MemberSpec(source="checkpoint", file=str(path), factory=factory), Digits())
    assert torch.equal(read(x), model(x))


def test_members_of_all_kinds_make_one_teacher_that_comes_back_from_the_store(
    stages_of: Any, tmp_path: Path, factory: str, linear: tuple[Path, nn.Module]
) -> None:
    path, model = linear
    members = [
        {"source": "pipeline", "weight": 2},
        {"source": "student"},
        {"source": "checkpoint", "file": str(path), "factory": factory, "normalize": {"mean": [0.5], "std": [0.5]}},
    ]
    teacher = {"fit": {"epochs": 1}, "members": members, "cache": {"views": 1}}
    run = stages_of(tmp_path / "home", **RECIPE, teacher=teacher, distill={"fit": {"epochs": 1}})
    record = run.stage("train_teacher").record
    assert isinstance(record, Checkpoint)
    curves = [sorted(epoch.values) for epoch in record.history]
    assert "train/loss" in curves[0]
    assert "2/train/loss" in curves[1]
    assert len(curves) == 2
    run.stage("cache_teacher")
    run.stage("distill")
    path.unlink()  # the store has all of it
    loaded: Any = run.work("cache_teacher", tmp_path).model("teacher")
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        said = [member(x) for member in loaded.members]
        torch.testing.assert_close(said[2], model((x - 0.5) / 0.5))
        torch.testing.assert_close(loaded(x), (2 * said[0] + said[1] + said[2]) / 4)


def test_what_a_file_holds_is_in_the_key_and_where_it_lies_is_not(
    stages_of: Any, tmp_path: Path, factory: str, linear: tuple[Path, nn.Module]
) -> None:
    path, model = linear

    def key(file: Path) -> str:
        member = {"source": "checkpoint", "file": str(file), "factory": factory}
        return str(stages_of(tmp_path, **RECIPE, teacher={"members": [member]}).plan.node("train_teacher").key({}))

    first = key(path)
    assert key(path.rename(tmp_path / "moved.safetensors")) == first
    save_file({name: 2 * value for name, value in model.state_dict().items()}, tmp_path / "moved.safetensors")
    assert key(tmp_path / "moved.safetensors") != first
    (tmp_path / "moved.safetensors").unlink()
    with pytest.raises(RecipeError) as caught:
        key(tmp_path / "moved.safetensors")
    assert str(caught.value) == (
        f"the teacher's file {str(tmp_path / 'moved.safetensors')!r} is not there, seen from {str(Path.cwd())!r}; "
        "correct 'file' in 'teacher.members', or give its whole path"
    )


def test_the_whole_package_of_a_factory_is_in_the_key(
    stages_of: Any, tmp_path: Path, linear: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_nets"
    package.mkdir()
    for name, text in (("__init__", ""), ("make", FACTORY), ("blocks", "WIDTH = 4\n")):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))

    def keys() -> list[str]:
        member = {"source": "checkpoint", "file": str(linear[0]), "factory": "my_nets.make:make"}
        plan = stages_of(tmp_path, **RECIPE, teacher={"members": [member]}).plan
        return [str(plan.node("train_teacher").key({})), answering(plan.recipe.teacher)["members"][0]["factory_code"]]

    before = keys()
    assert keys() == before
    (package / "blocks.py").write_text("WIDTH = 8\n")
    assert not set(keys()) & set(before)


def test_all_that_a_factory_imports_is_in_the_key(
    stages_of: Any, tmp_path: Path, linear: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module beside it, what that imports in a function, and the version of what is installed."""
    for name, text in (
        ("loose_nets", FACTORY + "\nimport my_layers"),
        ("my_layers", "def f():\n    from my_sizes.of import WIDTH\nimport json, torch, no_such_module_of_mine"),
        ("my_sizes/of", "WIDTH = 4"), ("other", "WIDTH = 4"),
    ):  # fmt: skip
        (tmp_path / "path" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "path" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))

    def key() -> str:
        member = {"source": "checkpoint", "file": str(linear[0]), "factory": "loose_nets:make"}
        return str(stages_of(tmp_path, **RECIPE, teacher={"members": [member]}).plan.node("train_teacher").key({}))

    seen = [key()]
    (tmp_path / "path" / "other.py").write_text("WIDTH = 8")
    assert key() == seen[0]
    for name in ("my_layers", "my_sizes/of"):
        with (tmp_path / "path" / f"{name}.py").open("a") as file:
            file.write("\nDEPTH = 3")
        seen.append(key())
    assert len(set(seen)) == 3


def test_a_teacher_whose_factory_imports_something_else_than_was_planned_is_refused(
    stages_of: Any, tmp_path: Path, linear: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("path/nets", FACTORY + "\ntry:\n    import only_here\nexcept ImportError:\n    pass"),
                       ("here/only_here", "")):  # fmt: skip
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    member = {"source": "checkpoint", "file": str(linear[0]), "factory": "nets:make"}
    run = stages_of(tmp_path / "home", **RECIPE, teacher={"members": [member]})
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    with pytest.raises(StageError) as caught:
        run.stage("train_teacher")
    assert str(caught.value) == (
        "stage 'train_teacher' was planned with other code, files or settings than are there now "
        "(recipe.teacher.members); nothing was stored; run again: KDQ plans it with what is there now"
    )


def test_a_factory_in_no_module_is_told_when_the_plan_is_made(
    stages_of: Any, tmp_path: Path, linear: tuple[Path, nn.Module]
) -> None:
    member = {"source": "checkpoint", "file": str(linear[0]), "factory": "no_such_module.of_mine:make"}
    with pytest.raises(RecipeError) as caught:
        stages_of(tmp_path, **RECIPE, teacher={"members": [member]})
    assert str(caught.value) == (
        "the teacher's factory is in 'no_such_module.of_mine', and there is no such module; install its package, put "
        "its folder on PYTHONPATH, or correct 'factory' in 'teacher.members' (the folder kdq runs in is not searched)"
    )


def test_a_teacher_of_the_students_kind_follows_the_students_options(stages_of: Any, tmp_path: Path) -> None:
    def key(width: int) -> str:
        workload = {"use": "digits", "options": {"student_width": width}}
        run = stages_of(tmp_path, workload=workload, teacher={"members": [{"source": "student"}]})
        return str(run.plan.node("train_teacher").key({}))

    assert key(16) != key(32)


@pytest.mark.parametrize("distill", [{}, {"losses": ["logit-kd", "dkd"]}, {"use": "dkd"}])
def test_a_recipe_reaches_the_worker_as_it_was_read(distill: dict[str, Any]) -> None:
    members = [{"source": "student", "normalize": {"mean": [0.5], "std": [0.5]}}, {"source": "pipeline"}]
    recipe = Recipe.model_validate({"name": "x", **RECIPE, "distill": distill, "teacher": {"members": members}})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    "change",
    [
        {"members": [{"weight": 1}, {"weight": 100}]},
        {"combine": "confidence"},
        {"members": [{"normalize": {"mean": [0.1], "std": [0.2]}}, {}]},
    ],
    ids=["weight", "combine", "normalize"],
)
def test_another_way_to_combine_the_same_weights_is_another_teacher_to_all_later_stages(
    stages_of: Any, tiny: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    files = []
    for number in range(2):
        torch.manual_seed(number)
        files.append(tmp_path / f"{number}.safetensors")
        save_file(tiny.build("workload", "digits", {}).teacher().state_dict(), files[-1])

    def run(**teacher: Any) -> Any:
        options = teacher.pop("members", [{}, {}])
        members = [{"source": "checkpoint", "file": str(f), **o} for f, o in zip(files, options, strict=True)]
        made = stages_of(tmp_path / "home", tiny, workload={"use": "digits"}, teacher={"members": members, **teacher})
        for name in ("train_teacher", "cache_teacher"):
            made.stage(name)
        return made

    one, other, again = run(), run(**change), run()
    keys = [made.plan.node("distill").key({n: made.entries[n].digest for n in made.entries}) for made in (one, other)]
    assert keys[0] != keys[1]
    rows = [made.entries["cache_teacher"].file("logits.bin").read_bytes() for made in (one, other, again)]
    assert rows[0] == rows[2] != rows[1]
