"""Write the data of a net for tools that do not know KDQ, and read it again. Writing needs KDQ, reading NumPy alone.

`python -m benchmarks.peers.data NET OUT SIZE` writes `OUT/data/NET.npz`: the inputs and labels of train and test, as
KDQ's workload gives them, and `NET.json`: names of the inputs, sizes of the tables. SIZE is `tiny` or `whole`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.peers.nets import NETS, Budget

if TYPE_CHECKING:
    import numpy as np

    from kdq_core.plugins.kinds import Workload

AT_ONCE = 1024


class Split(NamedTuple):
    """Samples: each input `[N, ...]`, and classes int64 `[N]` or ratings float32 `[N, 1]`."""

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray


class Data(NamedTuple):
    """What a net is trained on and tested with.

    Attributes:
        train: training samples.
        test: samples of the test.
        names: names of the inputs.
        sizes: what the net needs to know, such as the number of words.
    """

    train: Split
    test: Split
    names: tuple[str, ...]
    sizes: dict[str, int]


def read(net: str, out: Path) -> Data:
    """Read what `write` wrote."""
    import numpy as np

    about = json.loads((out / "data" / f"{net}.json").read_text(encoding="utf-8"))
    names = tuple(about["names"])
    with np.load(out / "data" / f"{net}.npz") as arrays:
        splits = [
            Split(tuple(arrays[f"{split}-{name}"] for name in names), arrays[f"{split}-labels"])
            for split in ("train", "test")
        ]
    return Data(splits[0], splits[1], names, about["sizes"])


def write(net: str, out: Path, budget: Budget) -> None:
    """Read KDQ's workload and write its splits, and the first test samples as inputs for `kdq bench`."""
    import numpy as np

    from kdq_core.plugins.catalog import Catalog

    made: Any = Catalog.load().build("workload", NETS[net].workload, budget.options(NETS[net]))
    names = made.input_names() or ("input",)
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        inputs, labels = _whole(made, split)
        rows = slice(0, budget.samples if budget.tiny else None)
        arrays |= {f"{split}-{name}": values[rows] for name, values in zip(names, inputs, strict=True)}
        arrays[f"{split}-labels"] = labels[rows]
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{net}.npz", **arrays)
    first: dict[str, Any] = {name: arrays[f"test-{name}"][:32] for name in names}
    np.savez(folder / f"{net}-inputs.npz", **first)
    (folder / f"{net}.json").write_text(json.dumps({"names": names, "sizes": _sizes(net, made)}), encoding="utf-8")


def _whole(workload: Workload, split: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs and labels of a split, in the order of its samples."""
    import torch

    batches = list(workload.batches(split, batch_size=AT_ONCE))
    order = torch.cat([batch.ids for batch in batches]).argsort()
    inputs = [torch.cat(parts)[order].numpy() for parts in zip(*(batch.inputs for batch in batches), strict=True)]
    return inputs, torch.cat([batch.targets for batch in batches if batch.targets is not None])[order].numpy()


def _sizes(net: str, workload: Workload) -> dict[str, int]:
    student: Any = workload.student()
    if net == "transformer":
        words, places = student.words.num_embeddings, student.places.num_embeddings
        return {"words": words, "length": places, "classes": student.head.out_features}
    if net == "ratings":
        return {"users": student.users.table.num_embeddings, "books": student.books.table.num_embeddings}
    return {}


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), Budget(tiny=sys.argv[3] == "tiny"))
