"""Models and data of other packages, by stand-ins: outputs of `transformers`, data sets of Hugging Face."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kdq_core.api import RecipeError, StageError, Workload
from kdq_core.plugins.catalog import Catalog
from kdq_workloads.plain import logits_of, plain

Write = Callable[..., str]

DATA = """

class Rows:
    \"\"\"Items, slices and columns as a data set of Hugging Face gives them: plain lists, by name.\"\"\"
    def __init__(self, **columns):
        self.columns = columns
    def __len__(self):
        return len(next(iter(self.columns.values())))
    def __iter__(self):
        return (self[number] for number in range(len(self)))
    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        return {name: column[key] for name, column in self.columns.items()}

def rows(count=40, **more):
    ids = [[number % 9, number % 5, 1] for number in range(count)]
    mask = [[1, 1, number % 2] for number in range(count)]
    return Rows(input_ids=ids, attention_mask=mask, label=[number % 3 for number in range(count)], **more)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 3)
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **kwargs):
        return {"logits": (self.table(input_ids) * attention_mask.unsqueeze(-1)).sum(1)}

def whole():
    return rows()

def by_name():
    return {"train": rows(30), "test": rows(12)}

def numbered():
    return rows(idx=list(range(40)))

def text():
    return rows(input_text=["a sentence"] * 40)

def ragged():
    return rows(pixels=[[0.0] * (1 + number % 2) for number in range(40)])

def uneven():
    return rows(pixels=[[[1, 2], [3]] for _ in range(40)])

def missing():
    return rows(pixels=[None] * 40)

def nested():
    return {"train": rows(30), "rest": rows(12)}

def items(split):
    return iter(rows())

def changing(split):
    yield {"input_ids": torch.zeros(2, 3), "mask": torch.ones(2, 3)}
    yield {"input_ids": torch.zeros(2, 3)}
"""


def workload(file: str, data: str) -> Workload:
    found = Catalog.load().build("workload", "python", {"model": f"{file}:Model", "data": f"{file}:{data}"})
    assert isinstance(found, Workload)
    return found


def test_a_data_set_of_plain_lists_is_read_and_reaches_the_model_by_name(module: Write) -> None:
    mine = workload(module(DATA), "whole")
    batch = next(iter(mine.batches("test", batch_size=3)))
    assert [(x.dtype, tuple(x.shape)) for x in batch.inputs] == [(torch.int64, (3, 3)), (torch.int64, (3, 3))]
    assert batch.targets is not None
    assert batch.targets.dtype == torch.int64
    assert torch.equal(batch.inputs[0][:, 0] % 3, batch.targets)
    model = mine.student()
    expected = (model.table(batch.inputs[0]) * batch.inputs[1][..., None]).sum(1)  # type: ignore[operator]
    assert torch.equal(model(*batch.inputs), expected)


def test_data_sets_by_the_names_of_splits_are_these_splits(module: Write) -> None:
    mine: Any = workload(module(DATA), "by_name")
    assert [mine.samples(split) for split in ("train", "validation", "test")] == [27, 3, 12]


def test_a_loader_without_a_collate_of_its_own_takes_plain_lists(module: Write) -> None:
    mine = workload(module(DATA + "\n\ndef loader():\n    return DataLoader(rows())\n"), "loader")
    assert next(iter(mine.batches("test", batch_size=4))).inputs[0].shape == (4, 3)


def test_names_that_a_collate_gives_decide_which_input_is_which(module: Write) -> None:
    more = """

def padded(items):
    ids = torch.tensor([ids for ids, _ in items])
    return {"attention_mask": torch.ones(ids.shape), "input_ids": ids, "y": torch.tensor([y for _, y in items])}

def pairs(split):
    return DataLoader([([1, 2], 0), ([3, 4], 1), ([5, 6], 2)], collate_fn=padded)
"""
    mine = workload(module(DATA + more), "pairs")
    batch = next(iter(mine.batches("test", batch_size=2)))
    assert mine.input_names() == ("attention_mask", "input_ids")
    model = mine.student()
    expected = model.table(torch.tensor([[1, 2], [3, 4]])).sum(1)  # type: ignore[operator]
    assert torch.equal(model(*batch.inputs), expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text", "input 'input_text' of the data is text ('a sentence'); KDQ needs numbers: turn it into a tensor in "
         "the data's own code"),
        ("ragged", "items of the data set differ in shape: 'pixels' is (1,) in one and (2,) in another; pad them to "
         "one size, or return a DataLoader whose collate_fn pads each batch"),
        ("uneven", "an item of the data set has a list that is no array of numbers: expected sequence of length 2 at "
         "dim 1 (got 1); pad its rows to one length, and fill what is missing"),
        ("missing", "the data set's items cannot be stacked to a batch: default_collate: batch must contain tensors, "
         "numpy arrays, numbers, dicts or lists; found <class 'NoneType'>; turn every part of an item into a tensor in "
         "the data's own code, or return a DataLoader with a collate_fn"),
        ("nested", "{file}:nested gave a dict in which 'train' is a 'Rows'; a dict must have the inputs and the labels "
         "as arrays, each with one row for each sample; give a data set itself, one for each split"),
        ("items", "{file}:items('train') is an iterable of 'int', not of batches of tensors; wrap it in "
         "torch.utils.data.DataLoader(..., batch_size=32), or return a map-style data set"),
        ("changing", "a batch of the data lacks the input 'mask', which the first one has; it has: input_ids; give "
         "every sample the same inputs"),
    ],
)  # fmt: skip
def test_items_that_make_no_batch_are_named(data: str, message: str, module: Write) -> None:
    file = module(DATA)
    with pytest.raises((RecipeError, StageError)) as caught:
        list(workload(file, data).batches("train", batch_size=40))
    assert str(caught.value) == message.format(file=file)


def test_an_input_that_forward_does_not_take_is_refused_instead_of_passed_in_another_place(module: Write) -> None:
    with pytest.raises(StageError) as caught:
        workload(module(DATA), "numbered").student()
    assert str(caught.value) == (
        "the data has the input 'idx', which forward() of 'Model' does not take; it takes: input_ids, attention_mask, "
        "token_type_ids; leave it out of the data, or give forward() a parameter of that name"
    )


@dataclasses.dataclass
class Answer(OrderedDict[str, Any]):
    """A dict and a dataclass at once, as the outputs of `transformers` are; what is None is no entry."""

    loss: Any = None
    logits: Any = None
    last: Any = None
    cache: Any = None

    def __post_init__(self) -> None:
        self.update({f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name)})


@dataclasses.dataclass
class Plain:
    cache: Any
    hidden: Any


def test_an_output_that_is_a_dict_and_a_dataclass_gives_its_logits_or_its_first_tensor() -> None:
    x, y = torch.ones(()), torch.ones(()) * 2
    for given in (Answer(logits=x, last=y, cache=[y]), Answer(last=x, cache=[y]), Plain([y], x), (x, y), {"out": x}):
        assert logits_of(given) is x
    assert logits_of(UserDict(logits=x, last=y)) is x
    assert logits_of({"a": x, "b": y, "cache": None}) == {"a": x, "b": y}


def test_a_model_with_such_an_output_keeps_its_class_and_gives_plain_logits() -> None:
    class Net(nn.Module):
        def forward(self, input_ids: Any = None, attention_mask: Any = None, **more: Any) -> Any:
            return Answer(logits=input_ids.sum() - attention_mask.sum())

    made = plain(Net(), ("attention_mask", "input_ids"))
    assert isinstance(made, Net)
    assert float(made(torch.ones(3), torch.ones(2) * 5)) == 7
