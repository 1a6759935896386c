"""Workloads for a user's own model: arrays, tables, images and functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from kdq_core.api import Batch, Outputs, RecipeError, StageError, View, Workload
from kdq_core.plugins.catalog import Catalog
from kdq_core.testing import check_workload
from kdq_workloads.plain import logits_of, plain

Write = Callable[..., str]
Pair = tuple[np.ndarray, np.ndarray]


def built(use: str, **options: Any) -> Workload:
    found = Catalog.load().build("workload", use, options)
    assert isinstance(found, Workload)
    return found


def ids(workload: Workload, split: Any) -> list[int]:
    return [int(one) for batch in workload.batches(split, batch_size=7) for one in batch.ids]


def inputs(workload: Workload, split: Any, **given: Any) -> torch.Tensor:
    return torch.cat([batch.inputs[0] for batch in workload.batches(split, batch_size=7, **given)])


def test_arrays_keep_the_promises_of_a_workload(module: Write, arrays: Pair) -> None:
    file = module()
    np.savez("data.npz", x=arrays[0], y=arrays[1])
    check_workload(built("arrays", file="data.npz", model=f"{file}:small", teacher=f"{file}:large"))


def test_a_function_keeps_the_promises_of_a_workload_also_with_random_augmentation(module: Write) -> None:
    file = module()
    options = {"model": f"{file}:small", "teacher": f"{file}:large", "data": f"{file}:by_split"}
    workload = built("python", **options, loss=f"{file}:own_loss")
    check_workload(workload)
    one, same, other = (inputs(workload, "train", view=View(3, number)) for number in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.dtype == torch.float32


def test_a_table_keeps_the_promises_of_a_workload(module: Write, arrays: Pair) -> None:
    file = module()
    frame = pd.DataFrame(arrays[0].reshape(60, 12)).add_prefix("f")
    frame["label"] = [("a", "b", "c")[one] for one in arrays[1]]
    frame.to_csv("data.csv", index=False)
    frame.to_parquet("data.parquet")
    for name in ("data.csv", "data.parquet"):
        options = {"file": name, "target": "label", "model": f"{file}:small", "teacher": f"{file}:large"}
        workload = built("table", **options)
        check_workload(workload)
        assert next(iter(workload.batches("test", batch_size=3))).inputs[0].shape == (3, 12)


def test_a_folder_of_images_keeps_the_promises_of_a_workload(module: Write) -> None:
    file = module("\n\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(27, 2))\n")
    for number in range(40):
        folder = Path("images", ("cat", "dog")[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (number, 0, 0)).save(folder / f"{number}.png")
    workload = built("image-folder", folder="images", size=3, model=f"{file}:net", teacher=f"{file}:net")
    check_workload(workload)
    batch = next(iter(workload.batches("test", batch_size=2)))
    assert batch.inputs[0].shape == (2, 3, 3, 3)
    assert float(batch.inputs[0].max()) <= 40 / 255


def test_splits_that_kdq_makes_are_disjoint_have_every_class_and_follow_the_seed(module: Write, arrays: Pair) -> None:
    file = module()
    x = np.arange(60.0)[:, None].repeat(12, 1)
    np.savez("data.npz", x=x, y=arrays[1])
    workload = built("arrays", file="data.npz", model=f"{file}:small")
    parts = {split: set(inputs(workload, split)[:, 0].tolist()) for split in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 60 == len(set.union(*parts.values()))
    assert {len(parts["validation"]), len(parts["test"])} == {6}
    for split in parts:
        assert {int(y) for b in workload.batches(split, batch_size=9) for y in b.targets} == {0, 1, 2}  # type: ignore[arg-type,union-attr]
    other = built("arrays", file="data.npz", model=f"{file}:small", split_seed=1)
    assert set(inputs(other, "test")[:, 0].tolist()) != parts["test"]
    assert other.fingerprint() != workload.fingerprint()


def test_splits_of_the_file_are_taken_and_validation_is_held_out_of_train(module: Write, arrays: Pair) -> None:
    file, (x, y) = module(), arrays
    np.savez("data.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    workload = built("arrays", file="data.npz", model=f"{file}:small")
    assert [workload.samples(split) for split in ("train", "validation", "test")] == [36, 4, 20]
    assert torch.equal(inputs(workload, "test"), torch.tensor(x[40:]).float())


FORMS = """

def arrays(split):
    made = Noisy(20, noise=False)
    return made.x, made.y

def tensors():
    made = Noisy(30, noise=False)
    return {"sound": torch.tensor(made.x), "y": torch.tensor(made.y)}

def loader(split):
    return DataLoader(Noisy(20, noise=False), batch_size=6)

def generator(split):
    for start in range(0, 20, 5):
        yield {"sound": torch.zeros(5, 3, 4), "label": torch.zeros(5, dtype=torch.int32)}

def listed(split):
    return [(torch.zeros(5, 3, 4), torch.ones(5)), (torch.zeros(2, 3, 4), torch.ones(2))]

def unlabelled(split):
    return TensorDataset(torch.zeros(9, 3, 4))
"""


@pytest.mark.parametrize(
    ("name", "train", "shape", "label"),
    [
        ("arrays", 20, (7, 3, 4), torch.int64),
        ("tensors", 24, (7, 3, 4), torch.int64),
        ("loader", 20, (7, 3, 4), torch.int64),
        ("generator", 20, (5, 3, 4), torch.int64),
        ("listed", 7, (5, 3, 4), torch.float32),
        ("unlabelled", 9, (7, 3, 4), None),
    ],
)
def test_data_in_every_form_is_read(name: str, train: int, shape: Any, label: Any, module: Write) -> None:
    file = module(FORMS)
    workload = built("python", model=f"{file}:small", data=f"{file}:{name}")
    batches = list(workload.batches("train", batch_size=7))
    assert workload.samples("train") == train == sum(len(batch.ids) for batch in batches)
    first: Batch = batches[0]
    assert tuple(first.inputs[0].shape) == shape
    assert first.inputs[0].dtype == torch.float32
    assert (first.targets.dtype if first.targets is not None else None) == label
    assert sorted(ids(workload, "test")) == list(range(workload.samples("test")))


def test_dicts_reach_the_models_parameters_by_name(module: Write) -> None:
    file = module("""

class Two(nn.Module):
    def forward(self, ids, mask=None):
        return ids * 10 + mask

def data(split):
    return {"mask": torch.ones(4, 3), "ids": torch.zeros(4, 3), "y": torch.zeros(4)}
""")
    workload = built("python", model=f"{file}:Two", data=f"{file}:data")
    batch = next(iter(workload.batches("test", batch_size=2)))
    assert torch.equal(workload.student()(*batch.inputs), torch.ones(2, 3))


def test_outputs_in_every_form_give_logits_and_keep_the_names_of_weights() -> None:
    x = torch.ones(2, 3)

    class Answer:
        logits = x

    for given in (x, {"logits": x, "hidden": x + 1}, {"only": x}, (x, x + 1), Answer()):
        assert logits_of(given) is x
    tasks = {"a": x, "b": x + 1}
    assert logits_of(tasks) == tasks

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.layer(x)}

    model = Net()
    names = list(model.state_dict())
    assert plain(model)(x).shape == (2, 2)
    assert list(model.state_dict()) == names
    assert type(model).__name__ == "Net"
    assert isinstance(model, Net)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "value"),
    [
        ("auto", torch.zeros(2, 4), torch.tensor([0, 1]), np.log(4)),
        ("auto", torch.ones(2, 1), torch.zeros(2), 1.0),
        ("cross-entropy", torch.zeros(2, 3, 5), torch.zeros(2, 5, dtype=torch.int64), np.log(3)),
        ("auto", torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.int64), np.log(3)),
        ("cross-entropy", torch.tensor([[[0.0, 0, 0], [9, 9, 0]]]), torch.tensor([[2, -100]]), np.log(3)),
        ("bce", torch.zeros(2, 3), torch.ones(2, 3), np.log(2)),
        ("mse", torch.full((2,), 3.0), torch.ones(2, 1), 4.0),
        ("ctc", torch.zeros(1, 1, 2), torch.tensor([[1, -1]]), np.log(2)),
    ],
)
def test_losses_by_name_are_those_of_their_formulas(
    loss: str, outputs: torch.Tensor, targets: torch.Tensor, value: float, module: Write
) -> None:
    workload = built("arrays", file="x.npz", model=f"{module()}:small", loss=loss)
    batch = Batch(inputs=(outputs,), targets=targets, ids=torch.arange(len(outputs)))
    assert float(workload.loss(Outputs(outputs), batch)) == pytest.approx(value, rel=1e-6)


def test_the_code_of_models_data_and_loss_is_in_the_key_and_data_by_its_content(module: Write, arrays: Pair) -> None:
    file = module()
    np.savez("data.npz", x=arrays[0], y=arrays[1])
    workload = built("arrays", file="data.npz", model=f"{file}:small", loss=f"{file}:own_loss")
    assert set(workload.runs()) == {f"{file}:small", f"{file}:own_loss"}
    before = workload.fingerprint()
    np.savez("data.npz", x=arrays[0] + 1, y=arrays[1])
    assert workload.fingerprint() != before
    Path("extra.txt").write_text("1")
    told = built("python", model=f"{file}:small", data=f"{file}:by_split", files=["extra.txt"])
    before = told.fingerprint()
    Path("extra.txt").write_text("2")
    assert told.fingerprint() != before


BAD = """

def none(split):
    return None if split == "test" else Noisy(5)

def number(split):
    return 3

def empty(split):
    return Noisy(0)

def words(split):
    return [(torch.zeros(2, 12), ["cat", "dog"])]

def endless(split):
    while True:
        yield torch.zeros(2, 12)

def short(split):
    return np.zeros((5, 12)), np.zeros(4)

def two(a, b):
    return None
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "none"}, "{file}:none('test') gave None; only the split 'validation' may be missing"),
        ({"data": "number"},
         "{file}:number('train') gave a 'int'; it must give a data set, a DataLoader, arrays (inputs, labels), or an "
         "iterable of batches"),
        ({"data": "empty"}, "{file}:empty('train') gave a data set without samples"),
        ({"data": "words"},
         "the label of the data is text ('cat'); KDQ needs numbers: number the classes in the data's own "
     "code, such as np.unique(labels, return_inverse=True)[1]"),
        ({"data": "endless", "limit": 10},
         "{file}:endless('train') gave more than 10 samples and did not end; let it end, such as with "
         "itertools.islice(batches, count), or raise 'limit' in the options of the workload"),
        ({"data": "two"},
         "data '{file}:two' cannot be called with the name of a split, nor without arguments: missing a required "
         "argument: 'a'"),
        ({"data": "KIND"}, "data '{file}:KIND' is a 'str'; it must be a function of the name of a split"),
        ({"data": "by_spilt"}, "'{file}' has no 'by_spilt'; did you mean 'by_split'? name a function or class that "
         "stands in it"),
    ],
)  # fmt: skip
def test_data_that_kdq_cannot_read_is_refused_with_what_it_must_be(
    options: dict[str, Any], message: str, module: Write
) -> None:
    file = module(BAD)
    workload = built("python", model=f"{file}:small", **{**options, "data": f"{file}:{options['data']}"})
    with pytest.raises((RecipeError, StageError)) as caught:
        list(workload.batches("train", batch_size=2))
    assert str(caught.value) == message.format(file=file)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("takes", "model '{file}:takes' cannot be called without arguments: missing a required argument: 'argument'; "
         "write a function that makes the model"),
        ("no_model", "model '{file}:no_model' gives a 'int'; it must be a torch.nn.Module, or a function without "
         "arguments that returns one"),
        ("KIND", "model '{file}:KIND' is a 'str'; it must be a torch.nn.Module, or a function without arguments that "
         "returns one"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_made_is_named(model: str, message: str, module: Write) -> None:
    file = module()
    with pytest.raises(StageError) as caught:
        built("arrays", file="x.npz", model=f"{file}:{model}").student()
    assert str(caught.value) == message.format(file=file)


def test_a_ready_model_is_copied(module: Write) -> None:
    workload = built("arrays", file="x.npz", model=f"{module()}:ready")
    one, two = workload.student(), workload.student()
    assert one is not two
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((9, 2))}, "'data.npz' has no array 'x'; it has: z; name the inputs in 'inputs' of the "
         "workload's options"),
        ({"x": np.zeros((9, 2)), "y": np.zeros(8)}, "'data.npz' has 9 samples in 'x', and 8 in 'y'; each array needs "
         "one row for each sample"),
        ({"x_train": np.zeros((9, 2))}, "'data.npz' has arrays of the split 'train', and none of 'test'; add "
         "'x_test', or give all samples as 'x', so that KDQ makes the splits"),
        ({"x": np.zeros((3, 2))}, "3 samples are too few to give the split 'validation' two of them; give more data, "
         "or splits of your own"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, Any], message: str, module: Write) -> None:
    file = module()
    np.savez("data.npz", **arrays)
    with pytest.raises((RecipeError, StageError)) as caught:
        built("arrays", file="data.npz", model=f"{file}:small").samples("train")
    assert str(caught.value) == message


def test_text_in_arrays_and_files_of_another_kind_are_refused(module: Write) -> None:
    file = module()
    np.savez("data.npz", x=np.array(["a", "b"]))
    Path("broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    for name, start in (
        ("data.npz", "array 'x' of "),
        ("broken.npz", ""),
        ("missing.npz", "the data file 'missing.npz'"),
    ):
        with pytest.raises((RecipeError, StageError)) as caught:
            built("arrays", file=name, model=f"{file}:small").samples("train")
        assert str(caught.value).startswith(start)
        assert ("KDQ needs numbers" in str(caught.value)) == (name == "data.npz")
        assert ("numpy.savez(path, x=..., y=...)" in str(caught.value)) == (name == "broken.npz")


def test_a_table_names_a_missing_column_and_a_missing_value(module: Write) -> None:
    file = module()
    pd.DataFrame({"a": [1.0, None] * 20, "b": ["x", "y"] * 20, "y": range(40)}).to_csv("t.csv", index=False)
    for options, message in (
        ({"target": "z"}, "'t.csv' has no column 'z'; it has: a, b, y"),
        ({"target": "y"}, "column 'a' of 't.csv' has missing values; fill them, or write a number for them as "
         "'missing' in the options of the workload"),
    ):  # fmt: skip
        with pytest.raises((RecipeError, StageError)) as caught:
            built("table", file="t.csv", model=f"{file}:small", **options).samples("train")
        assert str(caught.value) == message
    workload = built("table", file="t.csv", model=f"{file}:small", target="y", missing=-1.0)
    batch = next(iter(workload.batches("test", batch_size=2)))
    assert [one.dtype for one in batch.inputs] == [torch.float32, torch.int64]
    assert set(inputs(workload, "train").flatten().tolist()) == {1.0, -1.0}


def test_a_damaged_image_and_a_folder_without_images_are_named(module: Write) -> None:
    file = module()
    Path("images", "cat").mkdir(parents=True)
    workload = built("image-folder", folder="images", model=f"{file}:small")
    with pytest.raises(RecipeError) as caught:
        workload.samples("train")
    assert str(caught.value).startswith("'images' has no images in subfolders; put those of each class in a folder")
    for number in range(30):
        Path("images", "cat", f"{number}.png").write_bytes(b"no image")
    with pytest.raises(StageError) as broken:
        next(iter(built("image-folder", folder="images", model=f"{file}:small").batches("test", batch_size=2)))
    assert "cannot be read: UnidentifiedImageError" in str(broken.value)
    assert str(broken.value).endswith("; mend or remove it")
