"""Workload `my-plugin`: points of three clouds, and small networks that tell the clouds apart.

What: inputs are float32 `[B, 8]`, labels whole numbers from 0 to 2; batches hold the numbers of the samples.
Source: made here, from a seed.
Defaults: 600 training samples, 150 for validation and 150 for the test.
Limits: an example. Read your own data in `_points`, and let `fingerprint` change when the data does.
"""

import hashlib

from kdq_core.api import Batch, Field, Workload

SIZES = {"train": 600, "validation": 150, "test": 150}


class MyPlugin(Workload):
    """Its fields are the options of a recipe."""

    width: int = Field(default=8, ge=1, le=1024, description="units of the student's hidden layer; the teacher has 4x")

    def fingerprint(self):
        """A sha256 of the data and its splits; cheap, and without torch."""
        return hashlib.sha256(f"three clouds, {SIZES}".encode()).hexdigest()

    def teacher(self):
        """A new teacher."""
        return network(4 * self.width)

    def student(self):
        """A new student."""
        return network(self.width)

    def batches(self, split, *, batch_size, seed=0, epoch=0, view=None):
        """One pass over a split: `train` is shuffled by seed and epoch, and nothing is augmented."""
        import torch

        x, y = _points(split)
        order = torch.arange(len(y))
        if split == "train":
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for ids in order.split(batch_size):
            yield Batch(inputs=(x[ids],), targets=y[ids], ids=ids)

    def loss(self, outputs, batch):
        """The mean loss on hard labels."""
        from torch.nn import functional

        return functional.cross_entropy(outputs.logits, batch.targets)


def network(width):
    """Two linear layers, with logits `[B, 3]`."""
    from torch import nn

    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


def _points(split):
    import torch

    own = torch.Generator().manual_seed(list(SIZES).index(split))
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(3, (SIZES[split],), generator=own)
    return centres[labels] + 0.5 * torch.randn(len(labels), 8, generator=own), labels
