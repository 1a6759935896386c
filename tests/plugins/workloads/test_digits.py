"""The workload `digits`: its split, its views, its models."""

import hashlib
import importlib.util
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from kdq_core.api import Batch, Outputs, PluginError, StageError, View
from kdq_workloads import digits
from kdq_workloads.digits import Digits


def by_number(batches):
    return {int(n): image for b in batches for n, image in zip(b.ids, b.inputs[0], strict=True)}


def test_the_splits_have_their_stated_sizes_and_cover_the_data_once():
    sizes = {split: len(digits.load(split)[1]) for split in ("train", "validation", "test")}
    assert sizes == {"train": 1197, "validation": 300, "test": 300}
    images = {image.tobytes() for split in sizes for image in digits.load(split)[0]}
    assert len(images) == 1797


def test_every_split_has_every_class_in_the_same_share():
    for split, low, high in (("train", 115, 123), ("validation", 29, 32), ("test", 29, 32)):
        counts = np.bincount(digits.load(split)[1], minlength=10)
        assert counts.min() >= low
        assert counts.max() <= high


def test_the_images_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    known = {(image / 16).astype(np.float32).tobytes(): label for image, label in zip(*load_digits(return_X_y=True))}
    images, labels = digits.load("test")
    assert [known[image.tobytes()] for image in images] == labels.tolist()


def test_a_sample_has_the_same_view_whatever_batch_it_is_in():
    large = by_number(Digits().batches("train", batch_size=256, seed=3, epoch=2))
    small = by_number(Digits().batches("train", batch_size=7, seed=3, epoch=2))
    assert large.keys() == small.keys()
    assert all(torch.equal(large[n], small[n]) for n in large)


@pytest.mark.parametrize("other", [{"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 3}])
def test_another_seed_or_epoch_gives_another_view_and_another_order(other):
    first = by_number(Digits().batches("train", batch_size=64, seed=3, epoch=2))
    second = by_number(Digits().batches("train", batch_size=64, **other))
    assert list(first) != list(second)
    assert not any(torch.equal(first[n], second[n]) for n in first)


def test_views_stay_near_their_image_and_in_range():
    plain = by_number(Digits(augment=False).batches("train", batch_size=64))
    views = by_number(Digits().batches("train", batch_size=64))
    assert all(float(v.min()) >= 0 and float(v.max()) <= 1 for v in views.values())
    distances = torch.stack([(views[n] - plain[n]).abs().mean() for n in plain])
    assert 0.02 < float(distances.mean()) < 0.25


def test_without_shift_scale_and_noise_the_resampling_changes_nothing():
    nothing = digits.resampling(np.ones(3, np.float32), np.zeros(3, np.float32))
    assert np.array_equal(nothing, np.broadcast_to(np.eye(8, dtype=np.float32), (3, 8, 8)))


def test_a_shift_of_one_moves_the_image_by_one_pixel():
    moved = digits.resampling(np.ones(1, np.float32), np.ones(1, np.float32))[0] @ np.arange(8, dtype=np.float32)
    assert moved.tolist() == [0, 0, 1, 2, 3, 4, 5, 6]


def test_the_views_of_an_epoch_take_milliseconds():
    images, _ = digits.load("train")
    times = []
    for epoch in range(5):
        start = time.perf_counter()
        digits.augmented(images, View(0, epoch))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_validation_and_test_are_plain_and_in_fixed_order():
    for split in ("validation", "test"):
        batches = list(Digits().batches(split, batch_size=64, seed=9, epoch=9))
        assert torch.cat([b.ids for b in batches]).tolist() == list(range(300))
        assert np.array_equal(torch.cat([b.inputs[0] for b in batches]).numpy(), digits.load(split)[0])


def test_the_fingerprint_is_of_the_file_and_of_the_split(monkeypatch):
    content = digits.data_file().read_bytes()
    assert Digits().fingerprint() == hashlib.sha256(content + digits.SPLIT.encode()).hexdigest()
    before = Digits().fingerprint()
    monkeypatch.setattr(digits, "SPLIT", digits.SPLIT + " another way")
    assert Digits().fingerprint() != before


def test_the_fingerprint_needs_neither_torch_nor_scikit_learn_nor_numpy():
    code = (
        "import sys; from kdq_workloads.digits import Digits; Digits().fingerprint();"
        "print(sorted({'torch', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_scikit_learn_is_a_plugin_error_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PluginError) as caught:
        Digits().fingerprint()
    assert str(caught.value) == (
        "workload 'digits' reads the images that come with scikit-learn, which are not there; "
        "install it with `pip install scikit-learn`"
    )


def test_the_models_have_the_stated_sizes():
    def size(model):
        return sum(p.numel() for p in model.parameters())

    assert size(Digits().teacher()) == 480_450
    assert size(Digits().student()) == 221_966


def test_the_loss_is_the_mean_cross_entropy_and_needs_labels():
    batch = Batch(inputs=(), targets=torch.tensor([0, 1]), ids=torch.arange(2))
    loss = Digits().loss(Outputs(torch.zeros(2, 10, dtype=torch.bfloat16)), batch)
    assert float(loss) == pytest.approx(np.log(10), abs=1e-6)
    with pytest.raises(StageError) as caught:
        Digits().loss(Outputs(torch.zeros(2, 10)), Batch(inputs=(), targets=None, ids=torch.arange(2)))
    assert str(caught.value) == (
        "the loss of workload 'digits' needs labels; this batch has none; train on its own batches"
    )


def test_a_few_epochs_teach_a_narrow_student_something():
    torch.manual_seed(0)
    workload = Digits(student_width=16)
    model = workload.student()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for epoch in range(3):
        for batch in workload.batches("train", batch_size=64, epoch=epoch):
            optimizer.zero_grad()
            workload.loss(Outputs(model(*batch.inputs)), batch).backward()
            optimizer.step()
    model.eval()
    (batch,) = workload.batches("validation", batch_size=300)
    with torch.no_grad():
        assert float((model(*batch.inputs).argmax(1) == batch.targets).float().mean()) > 0.85
