"""A runtime that is a Python function, and subjects that run in it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdq_core.api import Batch, Subject, Target, TensorSpec


class FunctionSession:
    def __init__(self, function):
        self.function = function

    def run(self, inputs):
        return (self.function(*inputs),)


class FunctionTarget(Target):
    """Runs the function registered for a file's name; notes the threads each session was asked for."""

    functions: dict
    threads_asked: list
    outputs: tuple[str, ...] = ("logits", "output_1")

    def session(self, path, *, threads):
        self.threads_asked.append(threads)
        return FunctionSession(self.functions[Path(path).name])

    def resolved(self):
        return {}

    def places(self, graph):
        return ()

    def export(self, model, example, path):
        raise AssertionError("not used")

    def signature(self, path):
        return (), tuple(TensorSpec(name=name, dtype="float32", shape=(-1, 3)) for name in self.outputs)

    def coverage(self, path, graph):
        return ()


@pytest.fixture
def subject(tmp_path):
    """Make a subject from a function of the input arrays; the file holds its name only."""

    def make(role, function=None, **fields):
        path = tmp_path / f"{role}.onnx"
        path.write_bytes(role.encode())
        target = FunctionTarget(functions={path.name: function}, threads_asked=[])
        return Subject(role=role, path=path, target=target, threads=2, **fields)

    return make


@pytest.fixture
def table():
    """Batches whose inputs are rows of a table, 7 at a time: a function that returns its input answers with it."""

    def make(rows, labels=None):
        rows = torch.as_tensor(np.asarray(rows, dtype=np.float32))
        labels = None if labels is None else torch.as_tensor(np.asarray(labels))

        def batches():
            for ids in torch.arange(len(rows)).split(7):
                yield Batch((rows[ids],), None if labels is None else labels[ids], ids)

        return batches

    return make
