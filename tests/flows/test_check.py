"""`kdq check`: what would go wrong in a run is found without a run, in KDQ's own words."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdq_core.errors import KdqError, StageError
from kdq_core.plan.plan import asked_of
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.wiring import wire
from kdq_core.reading.checks import load_recipe
from kdq_core.recipe.spec import Site
from kdq_flows.own import checked
from kdq_flows.preflight import findings as module
from kdq_flows.preflight.findings import Finding, findings
from kdq_flows.preflight.models import Rehearsal

MODULE = """
import numpy as np
import torch
from torch import nn

def data(split):
    x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(len(split)))
    y = torch.arange(40) % 3
    return x, y

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.conv(x).relu().mean((2, 3))
        return self.head(x)

def net():
    return Net()
"""

RECIPE = """
name: own
workload: {{use: python, options: {{model: "{file}:net", data: "{file}:data", limit: 1000}}}}
student: {{source: checkpoint, file: net.safetensors}}
quantize: {{use: static}}
stages: [quantize, export, evaluate]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the user, which Python forgets."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def recipe_of(name: str, old: str = "", new: str = "", *, more: str = "") -> Path:
    """Write a module with one change, its weights, and a recipe."""
    import torch
    from safetensors.torch import save_file

    assert old in MODULE
    Path(f"{name}.py").write_text(MODULE.replace(old, new) if old else MODULE)
    net = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(1, 4, 3, padding=1), "head": torch.nn.Linear(4, 3)})
    save_file(net.state_dict(), "net.safetensors")
    Path("recipe.yaml").write_text(RECIPE.format(file=f"{name}.py") + more)
    return Path("recipe.yaml")


def found(file: Path, site: Site) -> list[Finding]:
    return list(findings(lambda: load_recipe(file, files=True), site))


def broken(file: Path, site: Site) -> tuple[str, str]:
    """The only finding that is not ok; it is the last one."""
    (*fine, last) = found(file, site)
    assert all(one.ok for one in fine), fine
    assert not last.ok, last
    return last.check, last.says


def test_a_sound_recipe_is_checked_through_to_the_file(site: Site) -> None:
    rows = found(recipe_of("sound_net"), site)
    assert [(one.check, one.says) for one in rows if one.check not in ("home", "loss", "export")] == [
        ("recipe", "'own' with the stages read_student, quantize, export, evaluate"),
        ("device", "cpu, 1 threads"),
        ("plan", "4 stages, 0 of them cached"),
        ("data",
         "train 40 samples, validation 40 samples, test 40 samples; inputs float32 [1, 8, 8]; labels int64, 3 classes "
         "from 0 to 2"),
        ("models", "student with 55 parameters"),
        ("forward", "student gives [3]"),
        ("trace", "the student is a graph of 4 calls"),
        ("quantizers", "'static' for 2 weights and 4 activations"),
        ("stages", "all 4 accept the recipe, the data and the models"),
    ]  # fmt: skip
    assert all(one.ok for one in rows)
    (export,) = [one.says for one in rows if one.check == "export"]
    assert export.startswith("takes x float32 [batch, 1, 8, 8]; ")
    assert export.endswith(" bytes for 'onnxruntime-cpu'; 3 of 3 operators in int8")
    assert list(site.home.rglob("*.safetensors")) == []  # nothing ran


def test_operators_that_stay_in_float_are_told_with_the_reason(site: Site) -> None:
    rows = found(recipe_of("float_net", "return self.head(x)", "return self.head(x).softmax(1)"), site)
    assert [one.says for one in rows if one.check == "in float"] == [
        "1 softmax at 'softmax', 0.0% of the MACs: softmax between float products stays float"
    ]


# A tensor on `meta` stands for one of a GPU that this machine lacks: neither can be copied to the CPU. KDQ copies a
# tensor of a GPU that is there.
MISTAKES = [
    ("wrong_shape", "return x, y", "return x.repeat(1, 3, 1, 1), y", "forward",
     "the student cannot answer for inputs of shape (2, 3, 8, 8): RuntimeError: Given groups=1, weight of size "
     "[4, 1, 3, 3], expected input[2, 3, 8, 8] to have 1 channels, but got 3 channels instead; give the data the shape "
     "that the student reads, or change the student"),
    ("text_array", "return x, y", "return x, np.array(['cat', 'dog'] * 20)", "data",
     "the label of the data is text ('dog'); KDQ needs numbers: number the classes in the data's own "
     "code, such as np.unique(labels, return_inverse=True)[1]"),
    ("text_list", "return x, y", "return x, ['cat', 'dog'] * 20", "data",
     "the label of the data is text ('dog'); KDQ needs numbers: number the classes in the data's own "
     "code, such as np.unique(labels, return_inverse=True)[1]"),
    ("text_items", "return x, y", "return [(one, 'cat') for one in x]", "data",
     "the label of the data is text ('cat'); KDQ needs numbers: number the classes in the data's own "
     "code, such as np.unique(labels, return_inverse=True)[1]"),
    ("other_device", "return x, y", "return x.to('meta'), y", "data",
     "an array of the data is on the device 'meta' and cannot be copied to the CPU: Cannot copy out of meta tensor; no "
     "data!; give tensors on the CPU, KDQ moves them to the device of the site"),
    ("other_device_items", "return x, y",
     "return torch.utils.data.TensorDataset(x.to('meta'), y.to('meta'))", "data",
     "input 0 of the data is on the device 'meta' and cannot be copied to the CPU: Cannot copy out of meta tensor; no "
     "data!; give tensors on the CPU, KDQ moves them to the device of the site"),
    ("endless", "return x, y", "return ((x, y) for _ in iter(int, 1))", "data",
     "endless.py:data('train') gave more than 1,000 samples and did not end; let it end, such as with "
     "itertools.islice(batches, count), or raise 'limit' in the options of the workload"),
    ("tuples", "return self.head(x)", "return (self.head(x), x), None", "forward",
     "the model gave 'tuple' where a tensor of logits is needed, or for several tasks a dict of tensors by task; "
     "return the logits alone"),
    ("no_batch", "return self.head(x)", "return self.head(x).mean(0)", "forward",
     "the student gives a tensor of shape (3,) for 2 samples; let it give logits of shape (samples, classes), or "
     "(samples, 1) for a number"),
    ("out_of_range", "y = torch.arange(40) % 3", "y = torch.arange(40) % 4", "loss",
     "sample 35 of the split 'train' has the label 3, but the model gives 3 classes, 0 to 2; mend the labels, or let "
     "the model give more classes (-100 marks a missing label)"),
    ("below_range", "y = torch.arange(40) % 3", "y = torch.arange(40) % 3 - 1", "loss",
     "sample 12 of the split 'train' has the label -1, but the model gives 3 classes, 0 to 2; mend the labels, or let "
     "the model give more classes (-100 marks a missing label)"),
    ("not_finite", "return x, y", "return x.index_fill(0, torch.tensor([7]), float('nan')), y", "data",
     "training batch 1 of the calibration is not finite: its input holds nan in 1 of 40 samples, first in sample 7; "
     "mend or drop these samples in the workload"),
    ("nan_loss", "return self.head(x)", "return self.head(x) / 0", "loss",
     "the student as it starts gives NaN or infinity for 40 of 40 samples of the split 'train', first for sample 0; "
     "look for a division by zero or a logarithm of zero in the model"),
    ("nan_of_one", "x = self.conv(x)", "x = self.conv(x / (x.amax((1, 2, 3), keepdim=True) < 4))", "loss",
     "the student as it starts gives NaN or infinity for 1 of 40 samples of the split 'validation', first for sample "
     "16; let the model answer for such a sample, for instance a sentence whose mask is all zero, or drop it from the "
     "data"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "check", "says"), MISTAKES, ids=[one[0] for one in MISTAKES])
def test_a_mistake_of_the_user_is_told_in_kdqs_words(
    name: str, old: str, new: str, check: str, says: str, site: Site
) -> None:
    assert broken(recipe_of(name, old, new), site) == (check, says)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_loader_that_does_not_end_is_named_in_seconds_by_check_and_by_a_run(
    split: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdq_workloads.sources.SECONDS", 0.02)
    name = f"unending_{split}"
    many = f"iter(int, 1) if split == {split!r} else range(3)"
    file = recipe_of(name, "return x, y", f"return ((x, y) for _ in ({many}))")
    file.write_text(file.read_text().replace(", limit: 1000", ""))
    check, says = broken(file, site)
    assert check == "data"
    assert re.fullmatch(
        rf"{name}\.py:data\('{split}'\) gave [\d,]+ samples in 0 s and did not end; let it end, such as with "
        r"itertools\.islice\(batches, count\), or write how many samples it has at most as 'limit' in the options of "
        r"the workload, and KDQ reads on", says,
    )  # fmt: skip
    catalog = Catalog.load()
    asked = asked_of(load_recipe(file), site, catalog)
    with pytest.raises(StageError, match=rf"^{name}\.py:data\('{split}'\) gave [\d,]+ samples in 0 s"):
        Rehearsal(asked, wire(asked, catalog), tmp_path).stages()


EARLY = [one for one in MISTAKES if one[0] in ("wrong_shape", "text_items", "other_device", "endless", "tuples")]


@pytest.mark.parametrize(("name", "old", "new", "check", "says"), EARLY, ids=[one[0] for one in EARLY])
def test_a_run_tells_a_mistake_before_its_first_fit_in_the_words_of_the_check(
    name: str, old: str, new: str, check: str, says: str, site: Site, tmp_path: Path
) -> None:
    catalog = Catalog.load()
    asked = asked_of(load_recipe(recipe_of(f"run_{name}", old, new)), site, catalog)
    with pytest.raises(KdqError) as caught:
        Rehearsal(asked, wire(asked, catalog), tmp_path).stages()
    assert str(caught.value) == says.replace(f"{name}.py", f"run_{name}.py"), check


def test_a_run_tells_before_its_first_fit_that_a_teacher_does_not_take_the_data(site: Site, tmp_path: Path) -> None:
    recipe_of("taught_net", "return x, y", "return x.repeat(1, 3, 1, 1), y")
    options = {"model": "taught_net.py:net", "teacher": "taught_net.py:net", "data": "taught_net.py:data"}
    recipe = checked(
        {"name": "taught", "workload": {"use": "python", "options": options}, "stages": ["train_teacher", "distill"]}
    )
    catalog = Catalog.load()
    asked = asked_of(recipe, site, catalog)
    with pytest.raises(
        KdqError, match=r"^the teacher cannot answer for inputs of shape \(2, 3, 8, 8\): RuntimeError: "
    ):
        Rehearsal(asked, wire(asked, catalog), tmp_path).stages()


def test_a_model_that_cannot_be_traced_is_told(site: Site) -> None:
    old = "x = self.conv(x).relu().mean((2, 3))"
    check, says = broken(recipe_of("branches", old, f"{old}\n        x = x + 1 if x.sum() > 0 else x"), site)
    assert check == "trace"
    assert says.startswith("model 'Net' cannot be captured as a graph: ")
    assert "branches.py" in says


def test_a_check_tells_which_of_several_outputs_it_takes(site: Site) -> None:
    rows = found(recipe_of("two_outputs", "return self.head(x)", "return x, self.head(x)"), site)
    (forward,) = [one.says for one in rows if one.check == "forward"]
    assert forward == "student gives [4], the first of 2 tensors: [4], [3]"


def test_a_missing_column_of_a_table_is_told(site: Site) -> None:
    file = recipe_of("column")
    Path("rows.csv").write_text("a,b\n" + "1,2\n" * 30)
    options = 'use: table, options: {model: "column.py:net", file: rows.csv, target: label}'
    text = file.read_text()
    file.write_text(text.replace(text[text.index("use: python") : text.index("}}\nstudent") + 1], options))
    assert broken(file, site) == ("plan", "'rows.csv' has no column 'label'; it has: a, b")


def test_the_file_of_compress_is_checked_without_a_recipe(call: Callable[..., tuple[int, str, str]]) -> None:
    recipe_of("half_net")
    code, out, _ = call("check", "half_net.py")
    assert code == 2
    assert "recipe      error   'half_net.py' defines no 'teacher'; it needs teacher() and student()" in out
    Path("whole_net.py").write_text(f"{MODULE}\nteacher = student = net\n")
    code, out, _ = call("check", "whole_net.py")
    assert code == 0
    assert "recipe      ok      'whole_net' with the stages train_teacher, cache_teacher, distill, place, " in out
    assert "export      ok      " in out


def test_a_bare_model_is_checked_by_the_options_of_quantize(call: Callable[..., tuple[int, str, str]]) -> None:
    recipe_of("bare_net")
    words = ["check", "bare_net.py:net", "--weights", "net.safetensors", "--data", "bare_net.py:data", "--bits", "4"]
    code, out, _ = call(*words, "--target", "openvino")
    assert code == 0, out
    assert "recipe      ok      'bare_net' with the stages read_student, place, quantize, export, evaluate" in out
    assert re.search(r"export      ok      takes x float32 \[batch, 1, 8, 8\]; [\d,]+ bytes for 'openvino'; ", out)
    Path("rows.csv").write_text("a,b\n" + "1,2\n" * 30)
    code, out, _ = call("check", "bare_net.py:net", "--data", "rows.csv", "--target", "label", "--json")
    assert code == 2
    assert json.loads(out)[-1] == {
        "check": "plan", "ok": False, "says": "'rows.csv' has no column 'label'; it has: a, b"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bare_net.py:net"], "the model 'bare_net.py:net' needs --data: npz, safetensors, CSV, Parquet, a folder of "
         "images, or file.py:function"),
        (["recipe.yaml", "--bits", "4"], "--bits goes with a model, such as 'kdq check my_model.py:net --data "
         "data.npz', and 'recipe.yaml' is a file; change it there, or name a model"),
    ],
)  # fmt: skip
def test_options_of_a_model_go_with_a_model(
    words: list[str], message: str, call: Callable[..., tuple[int, str, str]]
) -> None:
    assert call("check", *words) == (2, "", f"error: {message}\n")


def test_a_python_file_is_no_recipe_and_missing_code_is_told_by_validate(
    call: Callable[..., tuple[int, str, str]],
) -> None:
    file = recipe_of("code_net")
    assert call("validate", "code_net.py") == (
        2, "",
        "error: 'code_net.py' is a Python file, and a recipe is a YAML file; 'kdq check code_net.py' and 'kdq compress "
        "code_net.py' take a file with teacher(), student() and data(split)\n",
    )  # fmt: skip
    file.write_text(file.read_text().replace("code_net.py:net", "code_nett.py:net"))
    code, _, err = call("validate", "recipe.yaml")
    assert code == 2
    assert err.startswith("error: recipe.yaml:3: 'code_nett.py' is not there, seen from ")


def test_a_plan_refuses_a_rule_that_matches_nothing(call: Callable[..., tuple[int, str, str]]) -> None:
    file = recipe_of("ruled_net")
    file.write_text(file.read_text().replace("use: static", "use: static, rules: [{match: haed, skip: true}]"))
    code, out, err = call("plan", "recipe.yaml")
    assert (code, out) == (2, "")
    assert err == (
        "error: quantize.rules[0]: no operator matches 'haed'; did you mean 'head'? The model has conv, head; types of "
        "operator: conv, input, linear, pool.\n"
    )
    file.write_text(file.read_text().replace("haed", "head"))
    assert call("plan", "recipe.yaml")[0] == 0


def test_a_plan_of_rules_needs_no_data(call: Callable[..., tuple[int, str, str]]) -> None:
    file = recipe_of("no_data_net", "def data(split):", "def data(split):\n    raise OSError('the disk is away')")
    file.write_text(file.read_text().replace("use: static", "use: static, rules: [{match: haed, skip: true}]"))
    code, out, _ = call("plan", "recipe.yaml")
    assert code == 0
    assert "never run before" in out


def test_a_recipe_that_is_wrong_ends_the_check(site: Site) -> None:
    (only,) = found(recipe_of("wrong", more="gates: [{metric: top1}]\n"), site)
    assert (only.check, only.ok) == ("recipe", False)
    assert only.says.startswith("recipe.yaml:")


def test_a_factory_alone_and_a_missing_model_say_where_the_model_is_named(site: Site) -> None:
    file = recipe_of("alone_net")
    text = file.read_text().replace('model: "alone_net.py:net", ', "")
    file.write_text(text)
    (only,) = found(file, site)
    assert only.says == (
        "recipe.yaml:3: option 'model' of workload 'python' is missing; it must be text, module:function or "
        "file.py:function"
    )
    file.write_text(text.replace("source: checkpoint,", 'source: checkpoint, factory: "alone_net.py:net",'))
    (only,) = found(file, site)
    assert only.says == (
        "recipe.yaml:4: workload 'python' makes the student by its option 'model', which is missing; write model: "
        "'alone_net.py:net' in 'workload.options', and leave 'factory' out of 'student'"
    )


def test_home_device_and_tracking_server_are_looked_at_beside_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("home").write_text("a file")
    file = recipe_of("elsewhere")
    file.write_text(file.read_text().replace("evaluate]", "evaluate, register]"))
    site = Site(home=tmp_path / "home", device="cuda:99", tracking_uri="http://127.0.0.1:9", threads=1)
    monkeypatch.setattr(module, "plan", lambda *_: "planned")
    monkeypatch.setattr(module, "rehearsed", lambda *_: iter(()))
    rows = {one.check: one for one in found(file, site)}
    assert [check for check, one in rows.items() if not one.ok] == ["home", "device", "tracking"]
    assert rows["home"].says.startswith(f"cannot write to KDQ_HOME {str(tmp_path / 'home')!r}: ")
    assert "'cuda:99'" in rows["device"].says
    assert rows["tracking"].says.startswith("the tracking server at 'http://127.0.0.1:9' does not answer (")
