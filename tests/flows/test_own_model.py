"""A model of the user's own: `kdq quantize`, `kdq compress`, and the package `kdq`, on real data."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

import kdq
from kdq_core.errors import KdqError, RecipeError
from kdq_core.recipe.spec import Site
from kdq_flows import own
from kdq_flows.in_hand import pickled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(16 * width, 10)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return {"logits": self.head(x.flatten(1))}

def student():
    return Net(4)

def teacher():
    return Net(8)

def data(split):
    import numpy as np
    arrays = np.load("data.npz")
    part = {"train": slice(0, 300), "validation": slice(300, 400), "test": slice(400, 500)}[split]
    return arrays["x"][part], arrays["y"][part]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module, weights that were trained for a moment, and data."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_net.py").write_text(MODULE)
    digits = load_digits()
    x, y = (digits.images / 16)[:, None], digits.target
    np.savez(folder / "data.npz", x=x, y=y)  # float64, as NumPy has it
    sys.path.insert(0, str(folder))
    from own_net import student  # type: ignore[import-not-found]

    torch.manual_seed(0)
    model, images, labels = student(), torch.tensor(x).float(), torch.tensor(y)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for part in torch.arange(len(x)).split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[part])["logits"], labels[part]).backward()
        optimizer.step()
    save_file(model.state_dict(), folder / "net.safetensors")
    torch.save({"state_dict": model.state_dict()}, folder / "net.pt")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KDQ_HOME", str(folder / "home"))
    monkeypatch.setenv("KDQ_THREADS", "1")
    return folder


def called(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kdq", *words], capture_output=True, text=True, timeout=500)


def trained() -> nn.Module:
    from own_net import student

    model: nn.Module = student()
    model.load_state_dict(load_file("net.safetensors"))
    return model.eval()


def test_one_command_quantizes_a_model_and_says_the_recipe(here: Path) -> None:
    words = ["quantize", "own_net.py:student", "--weights", "net.safetensors", "--data", "data.npz"]
    done = called(*words, "--json", "--output", "out", "--recipe", "ptq.yaml")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [stage["name"] for stage in facts["stages"]] == ["read_student", "place", "quantize", "export", "evaluate"]
    assert {"student", "int8"} == facts["models"].keys()
    files = ["int8.onnx", "report.html", "report.md", "result.json"]
    assert sorted(path.name for path in Path("out").iterdir()) == files
    assert Path("out/int8.onnx").read_bytes() == Path(facts["artifact"]["path"]).read_bytes()
    assert Path("ptq.yaml").read_text() in done.stderr
    assert Path("ptq.yaml").read_text() in Path("out/report.md").read_text()

    workload: Any = own.checked(
        own.quantizing("own_net.py:student", "data.npz", Site(home=here), weights="net.safetensors")
    )
    from kdq_core.plugins.catalog import Catalog

    built: Any = Catalog.load().build("workload", workload.workload.use, workload.workload.options)
    (batch,) = built.batches("test", batch_size=1000)
    right = (trained()(*batch.inputs)["logits"].argmax(1) == batch.targets).double().mean().item()
    assert facts["models"]["student"]["top1"] == pytest.approx(right)
    assert right > 0.7

    (path,) = here.glob(f"home/store/??/{facts['stages'][0]['key']}/weights.safetensors")
    weights = load_file(path)
    given = load_file("net.safetensors")
    assert weights.keys() == given.keys()
    assert all(torch.equal(weights[name], given[name]) for name in given)

    again = called("plan", "ptq.yaml", "--json")
    assert {row["state"] for row in json.loads(again.stdout)} == {"cached"}, again.stdout


@pytest.mark.rare
def test_one_call_quantizes_a_model_in_hand_and_a_second_finds_it(here: Path) -> None:
    model, arrays = trained(), np.load("data.npz")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = arrays["x"].astype(np.float32), arrays["y"]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.tensor(x[:900]), torch.tensor(y[:900])), batch_size=50
    )
    result = kdq.quantize(model, loader, (x[900:], y[900:]), bits=4)
    answers = result.predict(torch.tensor(x[900:]).double())
    right = (answers.argmax(1) == y[900:]).mean()
    assert result.metrics["int8"]["top1"] == pytest.approx(right)
    with torch.no_grad():
        float_right = (model(torch.tensor(x[900:]))["logits"].argmax(1).numpy() == y[900:]).mean()
    assert result.metrics["student"]["top1"] == pytest.approx(float_right)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "## Recipe" in result.report()
    assert list(result.table["model"]) == ["float student", "W4A8 student"]
    assert "float student" in repr(result)
    assert "<table" in result._repr_html_()
    again = kdq.quantize(trained(), loader, (x[900:], y[900:]), bits=4)
    assert again.facts.status == "no-news"
    assert kdq.run(again.recipe).path == result.path


@pytest.mark.rare
def test_the_whole_chain_runs_on_the_functions_of_one_file(here: Path) -> None:
    done = called("compress", "own_net.py", "--epochs", "2", "--output", "chain", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [stage["name"] for stage in facts["stages"]] == [
        "train_teacher", "cache_teacher", "distill", "place", "quantize", "export", "evaluate"
    ]  # fmt: skip
    assert facts["models"].keys() == {"teacher", "student", "int8"}
    assert Path("chain/int8.onnx").is_file()


@pytest.mark.rare
def test_a_class_of_a_script_is_compressed_with_a_teacher_in_hand(here: Path) -> None:
    Path("script.py").write_text("""
import kdq, numpy as np, torch
from own_net import teacher

class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))

def loss(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)

arrays = np.load("data.npz")
batches = ((torch.tensor(arrays["x"][i:i + 50]), torch.tensor(arrays["y"][i:i + 50])) for i in range(0, 400, 50))
test = {"x": arrays["x"][400:500], "y": arrays["y"][400:500]}
held = arrays["x"][500:600], arrays["y"][500:600]
result = kdq.compress(Mine(), teacher(), list(batches), test, validation=held, epochs=1, loss=loss, name="mine")
print(sorted(result.metrics))
""")
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['int8', 'student', 'teacher']\n"


def test_work_in_float_does_not_stop_a_run_and_a_flip_does(here: Path) -> None:
    made = own.quantizing("own_net.py:student", "data.npz", Site(home=here), weights="net.safetensors")
    assert {gate.metric: gate.required for gate in own.checked(made).gates} == {
        "coverage_macs": False,
        "parity_flips": True,
        "speedup": False,
    }
    other = own.quantizing(
        "own_net.py:student", "data.npz", Site(home=here), weights="net.safetensors", quantizer="weight-only"
    )
    assert "gates" not in other


def test_weights_of_torch_save_are_read_without_running_their_code(here: Path) -> None:
    site = Site(home=here / "other")
    path = own.safetensors_of("own_net.py:student", "net.pt", site)
    given = load_file("net.safetensors")
    assert all(torch.equal(value, given[name]) for name, value in load_file(path).items())
    torch.save(trained(), "whole.pt")
    with pytest.raises(RecipeError) as caught:
        own.safetensors_of("own_net.py:student", "whole.pt", site)
    assert str(caught.value).startswith("the weights 'whole.pt' cannot be read without running code from the file: ")
    assert str(caught.value).endswith("save them with safetensors.torch.save_file(model.state_dict(), ...)")


def test_without_weights_those_of_the_function_are_taken(here: Path) -> None:
    Path("ready_net.py").write_text(
        "from own_net import student\nimport torch\ntorch.manual_seed(5)\nnet = student()\n"
    )
    path = own.safetensors_of("ready_net.py:net", None, Site(home=here / "other"))
    import ready_net  # type: ignore[import-not-found]

    assert all(torch.equal(value, ready_net.net.state_dict()[name]) for name, value in load_file(path).items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda site: own.quantizing("own_net.py:student", "data.txt", site),
         "'data.txt' is no data that KDQ knows; give a file (.npz, .safetensors, .csv, .parquet, .pq), a folder of "
         "images, or file.py:function"),
        (lambda site: own.quantizing("own_net.py:student", "rows.csv", site),
         "the table 'rows.csv' needs --target COLUMN, the column with the labels"),
        (lambda site: own.quantizing("own_net.py:student", "rows.csv", site, targets=["openvino", "onnxruntime-cpu"]),
         "--target names two targets, 'openvino' and 'onnxruntime-cpu'; name one"),
        (lambda site: own.compressing("ready.py"),
         "'ready.py' is not there, seen from {here!r}; correct the path"),
        (lambda site: own.compressing("half.py"),
         "'half.py' defines no 'student'; it needs teacher() and student(), which return a torch.nn.Module, and "
         "data(split), which returns a data set for 'train', 'validation' and 'test'"),
        (lambda site: kdq.quantize(3, [torch.zeros(2)]), "student is a 'int'; it must be a torch.nn.Module"),
        (lambda site: kdq.quantize(nn.Linear(2, 2), 3),
         "whole is a 'int'; it must be a data set, a DataLoader, arrays (inputs, labels), or an iterable of batches"),
        (lambda site: kdq.quantize(nn.Linear(2, 2), iter(())),
         "whole gave no batch; pass data that can be read again, such as a list or a DataLoader"),
        (lambda site: kdq.quantize(nn.Linear(2, 2), itertools.repeat(torch.zeros(600_000, 2))),
         "whole gave 1,200,000 samples in 0 s and did not end; pass a part, such as list(itertools.islice(batches, "
         "count)), or a data set"),
        (lambda site: kdq.quantize(nn.Linear(2, 2), [torch.zeros(2, 2)], quantizer="statik"),
         "the recipe:11: no quantizer named 'statik'; did you mean 'static'?"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_told_before_anything_runs(make: Callable[[Site], Any], message: str, here: Path) -> None:
    Path("half.py").write_text("def teacher(): ...\n\ndef data(split): ...\n")
    with pytest.raises(KdqError) as caught:
        make(Site(home=here / "other"))
    assert str(caught.value).startswith(message.format(here=str(here)))


def test_equal_models_and_data_are_written_as_equal_bytes() -> None:
    def both() -> bytes:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        return pickled((model, torch.arange(4), np.ones(3)))

    assert both() == both()
    torch.manual_seed(4)
    assert pickled(nn.Linear(2, 2)) != pickled(nn.Linear(2, 2))
