"""The example workloads keep the promises of the workload kit, on files made here."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from kdq_core.testing import check_workload
from kdq_examples import clinc150, fashion_mnist
from kdq_examples.clinc150 import Clinc150
from kdq_examples.fashion_mnist import FashionMnist
from kdq_examples.nets import DepthwiseNet, resnet
from tests.examples.conftest import Listed, put


@pytest.fixture
def images(listed: Listed, folders: Path) -> None:
    """Files of 40 + 12 images, of which the last 8 of the first file are for validation."""
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 12)):
        for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            head = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
            content = head + random.integers(0, 10, shape, np.uint8).tobytes()
            name = f"fashion-mnist/{part}-{kind}-ubyte.gz"
            listed(name, content)
            put(folders, name, content)


@pytest.fixture
def sentences(listed: Listed, folders: Path) -> None:
    """A file of 40 + 8 + 12 sentences about four intents, and one out of scope."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["split", "text", "label"])
    for split, first, last in (("train", 0, 40), ("val", 40, 48), ("test", 50, 62)):
        for number in range(first, last):
            words = " ".join(f"{word}{number % 4}" for word in ("please", "what's", split)[: 1 + number % 3])
            writer.writerow([split, f"{words} number {number}", f"intent{number % 4}"])
    writer.writerow(["test", "who are you", "oos"])
    listed(clinc150.FILE, out.getvalue().encode())
    put(folders, clinc150.FILE, out.getvalue().encode())


@pytest.mark.parametrize("options", [{"augment": True}, {"student_net": "depthwise", "labelled": 20}])
@pytest.mark.usefixtures("images")
def test_fashion_mnist_keeps_its_promises(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "VALIDATION", 32)
    workload = FashionMnist(train_images=32, teacher_width=4, student_width=4, **options)  # type: ignore[arg-type]
    check_workload(workload)


@pytest.mark.parametrize("net", ["transformer", "gru", "bag"])
@pytest.mark.usefixtures("sentences")
def test_clinc150_keeps_its_promises(net: str) -> None:
    workload = Clinc150(tokens=100, student_net=net, student_width=32, teacher_width=32)  # type: ignore[arg-type]
    check_workload(workload)
    assert [workload.samples(split) for split in ("train", "validation", "test")] == [40, 8, 12]


@pytest.mark.usefixtures("sentences")
def test_padding_changes_no_answer() -> None:
    import torch

    workload = Clinc150(tokens=100, student_width=32, teacher_width=32)
    tokens = next(iter(workload.batches("test", batch_size=12))).inputs[0]
    assert tokens.shape == (12, 24)
    assert (tokens[:, -4:] == 0).all()
    net = workload.teacher().eval()
    with torch.no_grad():
        known = net(tokens)
        for table in (net.words, net.places):
            table.weight[0 if table is net.words else slice(-4, None)] += 9.0  # what stands at padding alone
        assert torch.allclose(net(tokens), known, atol=1e-5)


@pytest.mark.usefixtures("sentences")
def test_tokens_are_learned_from_the_training_sentences_alone_and_are_the_same_each_time() -> None:
    clinc150.tokenizer.cache_clear()
    given = clinc150.files.sha256(clinc150.FILE)
    first = clinc150.tokenizer(given, 100).to_str()
    clinc150.tokenizer.cache_clear()
    assert clinc150.tokenizer(given, 100).to_str() == first
    tokens = clinc150.tokenizer(given, 100).get_vocab()
    assert tokens["train"] > 1
    assert not {"val", "test", "val0", "test0"} & set(tokens)
    assert clinc150.tokenizer(given, 100).encode("Please#").ids[-24:].count(1) == 1  # no '#' in training: unknown


@pytest.mark.usefixtures("images")
def test_without_augmentation_an_image_is_the_same_in_every_view(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdq_core.testing.workloads import collect, samples

    monkeypatch.setattr(fashion_mnist, "VALIDATION", 32)
    plain, moved = (FashionMnist(train_images=32, augment=augment) for augment in (False, True))
    assert samples(collect(plain, "train")) == samples(collect(plain, "train", seed=1, epoch=3))
    assert samples(collect(moved, "train")) != samples(collect(moved, "train", seed=1, epoch=3))
    assert plain.fingerprint() != moved.fingerprint()


def test_the_students_of_the_recipes_have_fewer_than_100_thousand_parameters() -> None:
    counts = [sum(p.numel() for p in net.parameters()) for net in (resnet(16, blocks=1), DepthwiseNet(24))]
    assert counts == [77754, 42394]
