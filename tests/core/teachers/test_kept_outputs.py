"""Teacher outputs as rows of files: what they hold, what a student reads, what is refused."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from kdq_core.errors import StageError
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import FitSpec
from kdq_core.recipe.teacher import CacheSpec
from kdq_core.store.records import TeacherOutputs
from kdq_core.store.store import Entry, Store
from kdq_core.teachers.build import build_outputs
from kdq_core.teachers.encoding import decode, encode, layout
from kdq_core.teachers.rows import row_bytes
from kdq_core.teachers.source import CachedTeacher, OnlineTeacher, TeacherSource
from kdq_core.tensors import Batch, Outputs
from kdq_core.training.fit import fit
from kdq_core.training.losses import outputs_of

SAMPLES, CLASSES = 48, 5
A, B = "a" * 64, "b" * 64


def teacher() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES)
    ).eval()


def batches(view: int, order: int = 0, size: int = 16) -> Iterator[Batch]:
    """48 samples in some order; what they look like depends on the view alone."""
    x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(view))
    ids = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(100 + order))
    for at in ids.split(size):
        yield Batch(inputs=(x[at],), targets=(x[at].sum(1) > 0).long(), ids=at, view=view)


def kept(
    folder: Path,
    ask: Callable[[Batch], Outputs],
    data: Callable[[int], Iterator[Batch]] = batches,
    samples: int = SAMPLES,
    **spec: Any,
) -> tuple[Entry, TeacherOutputs]:
    """A store entry of outputs, as the stage writes it."""
    asked = CacheSpec(**{"views": 2, "form": "fp32", **spec})
    build = build_outputs(ask, data, asked, samples=samples, folder=folder / "scratch")
    record = TeacherOutputs(
        teacher=A, data=B, seed=0, views=asked.views, samples=samples, classes=build.classes, tensors=build.tensors
    )
    store, key = Store(folder / "store"), "0" * 64
    with store.draft(key) as draft:
        for tensor in build.tensors:
            (build.folder / tensor.path).rename(draft / tensor.path)
        return store.commit(draft, stage="cache_teacher", key=key, parts={}, record=record), record


def cached(folder: Path, **spec: Any) -> CachedTeacher:
    return CachedTeacher(kept(folder, OnlineTeacher(teacher()), **spec)[0], teacher=A, data=B)


def test_a_student_reads_what_the_teacher_says_of_each_sample_and_view_in_any_order(tmp_path: Path) -> None:
    source, online = cached(tmp_path), OnlineTeacher(teacher())
    for view in (1, 0):
        for batch in batches(view, order=7, size=20):
            torch.testing.assert_close(source(batch).logits, online(batch).logits, rtol=1e-6, atol=1e-6)
    first = next(batches(0))
    assert not torch.allclose(source(first).logits, source(replace(first, view=1)).logits)


def test_the_rows_lie_at_view_times_samples_plus_number(tmp_path: Path) -> None:
    entry, _ = kept(tmp_path, OnlineTeacher(teacher()), form="fp16")
    rows = np.fromfile(entry.file("logits.bin"), "<f2").reshape(2, SAMPLES, CLASSES)
    batch = next(batches(1))
    said = teacher()(batch.inputs[0]).detach().numpy()
    np.testing.assert_allclose(rows[1, batch.ids.numpy()], said, rtol=2**-11, atol=1e-7)


def test_top_k_keeps_the_largest_probabilities_and_the_sum_of_the_others() -> None:
    logits = 3 * np.random.default_rng(0).standard_normal((7, 3, 10)).astype(np.float32)
    spec = CacheSpec(form="fp32", top_k=4)
    back = decode(encode(torch.from_numpy(logits), spec), 10, torch.device("cpu")).numpy()
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (logits.astype(float), back.astype(float)))
    order = np.argsort(-logits, axis=-1)
    top, rest = order[..., :4], order[..., 4:]
    np.testing.assert_allclose(np.take_along_axis(back, top, -1), np.take_along_axis(logits, top, -1), rtol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(q, top, -1), np.take_along_axis(p, top, -1), rtol=1e-5)
    evenly = np.take_along_axis(p, rest, -1).mean(-1, keepdims=True).repeat(6, -1)
    np.testing.assert_allclose(np.take_along_axis(q, rest, -1), evenly, rtol=1e-5)


def test_one_number_a_sample_is_kept_as_one(tmp_path: Path) -> None:
    entry, record = kept(tmp_path, lambda batch: Outputs(batch.inputs[0].sum(1)), form="fp32")
    assert (record.classes, record.tensors[0].shape) == (1, ())
    (batch, *_) = batches(1)
    said = CachedTeacher(entry, teacher=A, data=B)(replace(batch, view=1)).logits
    assert torch.equal(said, batch.inputs[0].sum(1))


def test_fused_views_teach_with_the_mean_of_what_is_kept_of_a_sample(tmp_path: Path) -> None:
    entry, record = kept(tmp_path, lambda batch: Outputs(batch.inputs[0]), form="fp32")
    (batch, *_) = batches(0)
    each = [CachedTeacher(entry, teacher=A, data=B)(replace(batch, view=v)).logits for v in range(record.views)]
    fused = CachedTeacher(entry, teacher=A, data=B, fuse=True)
    for view in range(record.views):
        assert torch.equal(fused(replace(batch, view=view)).logits, torch.stack(each).mean(0))
    assert not torch.equal(each[0], each[1])


def sequences(view: int, order: int = 0) -> Iterator[Batch]:
    """6 tokens a sample, of which the last few, 0 to 5, are padding: 0."""
    tokens = torch.randint(1, 12, (SAMPLES, 6), generator=torch.Generator().manual_seed(view))
    tokens[torch.arange(6) > torch.arange(SAMPLES)[:, None] % 6] = 0
    ids = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(order))
    for at in ids.reshape(-1, 16):
        yield Batch((tokens[at],), None, at, view=view)


@pytest.mark.parametrize("spec", [{"form": "fp32"}, {"form": "fp16"}, {"form": "fp16", "top_k": 3}])
def test_a_student_of_sequences_reads_what_the_teacher_says_at_each_position(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    """And learns the same from it with `token-kd`; from the 3 largest probabilities where they are what is kept."""
    torch.manual_seed(5)
    layers = nn.Embedding(12, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, CLASSES)
    online, token_kd = OnlineTeacher(nn.Sequential(*layers)), {"alpha": 1.0, "padding_input": 0}
    distiller: Any = Catalog.load().build("distiller", "token-kd", token_kd)
    entry, record = kept(tmp_path, online, sequences, **spec)
    assert (record.classes, record.tensors[0].shape) == (CLASSES, (6, spec.get("top_k", CLASSES)))
    source, close = CachedTeacher(entry, teacher=A, data=B), 1e-5 if spec["form"] == "fp32" else 1e-3
    for batch in (*sequences(1, order=7), *sequences(0, order=8)):
        read, said = source(batch).logits, online(batch).logits
        assert read.shape == (16, 6, CLASSES)
        if "top_k" in spec:
            largest = said.topk(3).indices
            p, q = (z.softmax(-1).gather(-1, largest) for z in (said, read))
            torch.testing.assert_close(q, p, rtol=2 * close, atol=close)
            said = decode(encode(said, CacheSpec(form="fp32", top_k=3)), CLASSES, said.device)
        torch.testing.assert_close(read, said, rtol=close, atol=close)
        student = torch.randn(16, 6, CLASSES)
        found, expected = (distiller.loss(Outputs(student), Outputs(z), batch).terms["token"] for z in (read, said))
        torch.testing.assert_close(found, expected, rtol=2 * close, atol=close)
        assert float(expected) > 0.1


@pytest.mark.parametrize(
    ("spec", "size"),
    [({"form": "fp16"}, 2 * 10), ({"form": "fp32"}, 4 * 10), ({"form": "fp16", "top_k": 3}, 3 * (2 + 2) + 2)],
)
def test_a_row_takes_the_bytes_of_its_form(spec: dict[str, Any], size: int) -> None:
    assert sum(row_bytes(tensor) for tensor in layout(Outputs(torch.zeros(1, 10)), CacheSpec(**spec))) == size


def curve(source: TeacherSource, views: int) -> list[float]:
    torch.manual_seed(3)
    student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    distiller: Any = Catalog.load().build("distiller", "logit-kd")

    def loss(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return dict(distiller.loss(outputs_of(model, batch), source(batch), batch).terms)

    spec = FitSpec(epochs=6, batch_size=16, learning_rate=0.05)
    history = fit(
        student,
        loss,
        lambda epoch: batches(epoch % views, order=epoch),
        spec,
        samples=SAMPLES,
        accelerator=Accelerator(cpu=True),
    )
    return [record.values["train/loss"] for record in history]


def test_the_loss_curve_is_that_of_the_teacher_beside_the_student(tmp_path: Path) -> None:
    online = curve(OnlineTeacher(teacher()), 2)
    assert online[-1] < 0.7 * online[0]
    assert curve(cached(tmp_path / "32", form="fp32"), 2) == pytest.approx(online, rel=1e-6)
    assert curve(cached(tmp_path / "16", form="fp16"), 2) == pytest.approx(online, rel=1e-3)
    assert curve(cached(tmp_path / "one", views=1), 1) != pytest.approx(online, rel=1e-2)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_kept_outputs import *
from kdq_core.teachers import build as building

building.RECORD_SECONDS = 0
def told(done, total):
    if done >= 64:
        print(done, flush=True)
        time.sleep(60)

build_outputs(OnlineTeacher(teacher()), batches, CacheSpec(views=3), samples=SAMPLES, folder=Path(sys.argv[1]),
              on_batch=told)
"""


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(Path(__file__).parent)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "64"
        os.kill(process.pid, signal.SIGKILL)
    asked: list[int] = []

    def counted(batch: Batch) -> Outputs:
        asked.append(batch.view)
        return OnlineTeacher(teacher())(batch)

    spec = CacheSpec(views=3)
    resumed = build_outputs(counted, batches, spec, samples=SAMPLES, folder=tmp_path / "killed")
    assert asked == [1, 1, 1, 2, 2, 2]  # what was not yet recorded of view 1 is asked again, view 0 is not
    asked.clear()
    whole = build_outputs(counted, batches, spec, samples=SAMPLES, folder=tmp_path / "whole")
    assert len(asked) == 9
    assert resumed.tensors == whole.tensors
    assert (resumed.folder / "logits.bin").read_bytes() == (whole.folder / "logits.bin").read_bytes()


def test_a_build_whose_files_went_away_starts_anew(tmp_path: Path) -> None:
    spec, online = CacheSpec(views=1), OnlineTeacher(teacher())
    first = build_outputs(online, batches, spec, samples=SAMPLES, folder=tmp_path)
    said = (tmp_path / "logits.bin").read_bytes()
    (first.folder / "logits.bin").unlink()
    build_outputs(online, batches, spec, samples=SAMPLES, folder=tmp_path)
    assert (tmp_path / "logits.bin").read_bytes() == said


@pytest.mark.parametrize("left", ["", '{"views": 1', "{}", '{"tensors": [{"name": 1}]}', "[]"])
def test_a_build_whose_record_was_cut_short_starts_anew(tmp_path: Path, left: str) -> None:
    spec, online = CacheSpec(views=1), OnlineTeacher(teacher())
    build_outputs(online, batches, spec, samples=SAMPLES, folder=tmp_path)
    said, record = (tmp_path / "logits.bin").read_bytes(), (tmp_path / "progress.json").read_text()
    (tmp_path / "logits.bin").write_bytes(bytes(len(said)))
    (tmp_path / "progress.json").write_text(left)
    build_outputs(online, batches, spec, samples=SAMPLES, folder=tmp_path)
    assert (tmp_path / "logits.bin").read_bytes() == said
    assert (tmp_path / "progress.json").read_text() == record


MEMORY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import psutil
from test_kept_outputs import *

form, peaks = {"form": "fp16", "top_k": int(sys.argv[3]) or None, "views": 1}, []
model = OnlineTeacher(nn.Linear(4, 1000))

def run(count):
    '''What building and reading the outputs for `count` samples add to this process, at most.'''
    used = []
    def data(view):
        for ids in torch.randperm(count).split(256):
            yield Batch((torch.randn(len(ids), 4),), None, ids, view=view)
            used.append(psutil.Process().memory_info().rss)
    before = psutil.Process().memory_info().rss
    source = CachedTeacher(kept(Path(sys.argv[1]) / str(count), model, data, count, **form)[0], teacher=A, data=B)
    for batch in data(0):
        assert source(batch).logits.shape == (len(batch.ids), 1000)
    assert len(used) == 2 * -(-count // 256)
    return max(used) - before

print(*[run(count) for count in (512, 12_000, 48_000)][1:])
"""


@pytest.mark.parametrize("top_k", [0, 10])
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path, top_k: int) -> None:
    """A teacher that says 192 MB in all, and is kept in up to 96 MB, takes about what one of 48 MB takes."""
    words = [sys.executable, "-c", MEMORY, str(tmp_path), str(Path(__file__).parent), str(top_k)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    few, many = map(int, said.split())
    assert many < 40e6, (few, many)
    assert many < few + 20e6, (few, many)


def test_a_logit_that_is_no_number_is_named_with_sample_and_view(tmp_path: Path) -> None:
    def broken(batch: Batch) -> Outputs:
        logits = torch.zeros(len(batch.ids), CLASSES)
        logits[batch.ids == 11, 2] = float("nan") if batch.view == 1 else 0
        return Outputs(logits)

    with pytest.raises(StageError) as caught:
        kept(tmp_path, broken)
    assert str(caught.value) == (
        "the teacher gave a logit of nan for sample 11 in view 1, so no student can learn from it; "
        "check the teacher's weights and the data for NaN"
    )


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_logit_beyond_fp16_says_which_form_holds_it(tmp_path: Path, top_k: int | None) -> None:
    def large(batch: Batch) -> Outputs:
        return Outputs(torch.full((len(batch.ids), CLASSES), 1e5))

    with pytest.raises(StageError) as caught:
        kept(tmp_path, large, form="fp16", top_k=top_k)
    assert str(caught.value) == (
        f"the teacher's largest logit for sample {int(next(batches(0)).ids[0])} in view 0 is 100000, beyond fp16, "
        "which ends at 65504; write teacher: {cache: {form: fp32}}, or check the teacher"
    )
    kept(tmp_path / "fp32", large, form="fp32", top_k=top_k)


def test_a_cache_beyond_its_limit_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        kept(tmp_path, OnlineTeacher(teacher()), limit_gb=1e-6)
    assert str(caught.value) == (
        "the teacher's outputs for 48 samples in 2 views take 1.92e-06 GB, more than 'teacher.cache.limit_gb', 1e-06; "
        "ask for fewer views, fp16 or a top_k, raise the limit, or run the teacher beside the student with "
        "teacher: {cache: {enabled: false}}"
    )
    assert not (tmp_path / "scratch").exists()


def test_as_many_top_classes_as_there_are_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        kept(tmp_path, OnlineTeacher(teacher()), top_k=5)
    assert str(caught.value) == (
        "'teacher.cache.top_k' is 5, but the teacher's logits have 5 classes; ask for fewer, or leave top_k out"
    )


@pytest.mark.parametrize(
    ("teacher", "data", "told"),
    [(B, B, "the teacher aaaaaaaaaaaa, but the student learns from the teacher bbbbbbbbbbbb"),
     (A, A, "the data bbbbbbbbbbbb, but the student learns from the data aaaaaaaaaaaa")],
)  # fmt: skip
def test_outputs_of_another_teacher_or_other_data_are_refused(
    tmp_path: Path, teacher: str, data: str, told: str
) -> None:
    entry, _ = kept(tmp_path, lambda batch: Outputs(torch.zeros(len(batch.ids), CLASSES)))
    with pytest.raises(StageError) as caught:
        CachedTeacher(entry, teacher=teacher, data=data)
    assert str(caught.value) == (
        f"the kept teacher outputs in {str(entry.folder)!r} are of {told}; delete that folder and run again: they are "
        "computed anew"
    )


def test_a_sample_or_a_view_that_is_not_kept_is_named(tmp_path: Path) -> None:
    source, batch = cached(tmp_path), next(batches(0))
    with pytest.raises(StageError) as caught:
        source(replace(batch, ids=batch.ids + 40))
    beyond = int((batch.ids + 40)[batch.ids + 40 >= SAMPLES][0])
    assert str(caught.value) == (
        f"there is no kept teacher output for sample {beyond}: the samples are 0 to 47; "
        "the workload must number its training samples the same way in each pass"
    )
    with pytest.raises(StageError, match="there is no kept teacher output for view 2: the views are 0 to 1; keep more"):
        source(replace(batch, view=2))


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([48], "the workload gave a sample numbered 48, but says it has 48 training samples"),
        ([3, 3], "the workload gave sample 3 twice in one pass"),
        ([3], "the workload gave 1 of the 48 training samples it says it has"),
    ],
)
def test_samples_that_are_not_numbered_from_0_to_n_are_an_error(tmp_path: Path, ids: list[int], told: str) -> None:
    def wrong(view: int) -> Iterator[Batch]:
        for number in ids:
            yield Batch((torch.zeros(1, 4),), None, torch.tensor([number]), view=view)

    with pytest.raises(StageError) as caught:
        build_outputs(OnlineTeacher(teacher()), wrong, CacheSpec(), samples=SAMPLES, folder=tmp_path)
    assert str(caught.value) == f"{told}; each sample number from 0 to N-1 must come once"
