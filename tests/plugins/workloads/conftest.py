"""A module of a user with models, a loss and data, in a folder of the test's own."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

NUMBERS = itertools.count()
SOURCE = '''
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

KIND = "dataset"

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))

def large():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))

def takes(argument):
    return small()

def no_model():
    return 3

ready = small()

def own_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets) * 2

class Noisy(Dataset):
    """Adds noise from every generator that a data set may use."""
    def __init__(self, count, noise=True):
        generator = np.random.default_rng(count)
        self.x = generator.normal(size=(count, 3, 4))
        self.y = generator.integers(0, 3, count)
        self.noise = noise
    def __len__(self):
        return len(self.x)
    def __getitem__(self, number):
        x = torch.tensor(self.x[number])
        return (x + np.random.rand() + torch.rand(()) if self.noise else x), int(self.y[number])

def by_split(split):
    return Noisy({"train": 40, "validation": 10, "test": 12}[split], noise=split == "train")
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes the module, with more code at its end, and gives its path; Python forgets it afterwards."""
    before = list(sys.path)
    monkeypatch.chdir(tmp_path)
    made = []

    def write(more: str = "") -> str:
        name = f"mine_{os.getpid()}_{next(NUMBERS)}"
        made.append(name)
        Path(f"{name}.py").write_text(SOURCE + more)
        return f"{name}.py"

    yield write
    sys.path[:] = before
    for name in made:
        sys.modules.pop(name, None)


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Sixty samples `[60, 3, 4]` of float64, and their classes."""
    generator = np.random.default_rng(1)
    return generator.normal(size=(60, 3, 4)), generator.integers(0, 3, 60)
