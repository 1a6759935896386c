"""Every distiller teaches a student of every family, in float and inside quantization-aware training."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdq_core.distillation.assembly import student_and_loss
from kdq_core.distillation.parts import Part
from kdq_core.distillation.student import TappedStudent
from kdq_core.errors import RecipeError, StageError
from kdq_core.plugins.catalog import Catalog
from kdq_core.quantization.capture import capture
from kdq_core.quantization.placing import placed
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.recipe.spec import FitSpec, QuantizeSpec
from kdq_core.tensors import Batch, Outputs
from kdq_core.testing.toys import TOYS
from kdq_core.training.fit import FitHooks, fit
from kdq_core.training.resume import tensors_of
from kdq_distillers.fitnet import Fitnet
from kdq_distillers.logit_kd import LogitKd
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_workloads.digits_models import DigitsResNet

FAMILIES = {toy.name: toy for toy in TOYS if toy.name in ("conv net", "transformer", "table with embeddings")}
CATALOG = Catalog.load()
NO_PLACES = {("attention-transfer", "table with embeddings")}


def ready(plain, inputs):
    """The prepared graph of a student, which has seen `inputs`."""
    graph = capture(plain, inputs)
    prepared = prepare(graph, placed(graph, OnnxRuntimeCpu(), MinMaxQat(), QuantizeSpec()).places, MinMaxQat())
    set_phase(prepared, observe=True, quantize=True, freeze_batch_norm=False)
    prepared(*inputs)
    return prepared


@pytest.fixture(scope="module")
def students():
    """Of each family a plain student and its prepared graph, which has seen data."""
    made = {}
    for name, toy in FAMILIES.items():
        torch.manual_seed(0)
        plain, inputs = toy.model(), toy.inputs(8, torch.Generator().manual_seed(1))
        made[name] = (plain, ready(plain, inputs), Batch(inputs, torch.arange(8) % toy.classes, torch.arange(8)))
    return made


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("name", sorted(CATALOG.names("distiller")))
@pytest.mark.parametrize("quantized", [False, True])
def test_every_distiller_teaches_every_family(students, numbers, online, seeded, family, name, quantized):
    plain, prepared, batch = students[family]
    student = copy.deepcopy(prepared if quantized else plain)
    distiller = CATALOG.build("distiller", name)
    teacher = online(seeded(FAMILIES[family].model, 7))

    def losses():
        model, loss = student_and_loss(numbers, [(Part(name, distiller), "auto")], teacher, student, batch, plain=plain)
        return loss(model.train(), batch)

    if (name, family) in NO_PLACES:
        with pytest.raises(StageError, match="needs features with positions"):
            losses()
        return
    terms = losses()
    assert all(term.isfinite() for term in terms.values())
    sum(term for key, term in terms.items() if key != "hard").backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert any(grad.any() for grad in grads)
    assert all(grad.isfinite().all() for grad in grads)


class Tagger(nn.Module):
    """A class for each position. Input `[B, L]` int64 below 12, 0 is padding; gives `[B, L, 5]`."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens)))


@pytest.mark.parametrize("quantized", [False, True])
def test_a_student_of_sequences_learns_at_each_position_that_is_no_padding(numbers, online, seeded, quantized):
    tokens = torch.randint(1, 12, (8, 6), generator=torch.Generator().manual_seed(1))
    padding = torch.arange(6) >= torch.tensor([6, 5, 4, 3, 2, 1, 6, 6])[:, None]
    tokens[padding] = 0
    batch = Batch((tokens,), (tokens % 5).masked_fill(padding, -100), torch.arange(8))
    plain, source = seeded(lambda: Tagger(16), 0), online(seeded(lambda: Tagger(24), 7))

    def teacher(asked):
        """It says nothing where there is padding."""
        said = source(asked)
        return replace(said, logits=said.logits.masked_fill(padding[..., None], float("nan")))

    part = Part("token-kd", CATALOG.build("distiller", "token-kd", {"alpha": 0.9, "padding_input": 0}))
    student = ready(plain, (tokens,)) if quantized else plain
    model, loss = student_and_loss(numbers, [(part, "auto")], teacher, student, batch, plain=plain)
    assert model(tokens).shape == (8, 6, 5)
    optimizer, curve = torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(12):
        terms = loss(model.train(), batch)
        assert set(terms) == {"token", "hard"}
        optimizer.zero_grad()
        sum(terms.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
        optimizer.step()
        curve.append(float(terms["token"].detach()))
    assert 0 < curve[-1] < 0.5 * curve[0]


def images(count=8):
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))
    return Batch((x,), torch.arange(count) % 10, torch.arange(count))


@pytest.fixture
def narrow(seeded):
    return seeded(lambda: DigitsResNet(4, (8, 16)), 1)


@pytest.fixture
def wide(seeded, online):
    return online(seeded(lambda: DigitsResNet(8, (8, 12, 24)), 2))


def test_projectors_are_made_by_shape_trained_with_the_student_and_left_out_of_it(numbers, narrow, wide):
    parts = [(Part("logit-kd", LogitKd()), "auto"), (Part("fitnet", Fitnet(beta=100.0)), "auto")]
    names = list(narrow.state_dict())
    model, loss = student_and_loss(numbers, parts, wide, narrow, images())
    assert isinstance(model, TappedStudent)
    shapes = {name: tuple(p.shape) for name, p in model.projectors.named_parameters()}
    assert shapes == {
        "1.bn~blocks/0.weight": (8, 4, 1, 1), "1.bn~blocks/0.bias": (8,),
        "1.blocks/0~blocks/1.weight": (12, 8, 1, 1), "1.blocks/0~blocks/1.bias": (12,),
        "1.blocks/1~blocks/2.weight": (24, 16, 1, 1), "1.blocks/1~blocks/2.bias": (24,),
    }  # fmt: skip
    before = tensors_of(model.projectors)
    spec = FitSpec(epochs=4, batch_size=8, learning_rate=0.01)
    history = fit(model, loss, lambda _e: [images()], spec, samples=8, accelerator=Accelerator(cpu=True))
    assert all(not torch.equal(old, model.projectors.state_dict()[name]) for name, old in before.items())
    assert history[-1].values["train/fitnet/hint"] < history[0].values["train/fitnet/hint"]
    assert list(model.student.state_dict()) == names


class StoppedError(Exception):
    pass


def test_a_fit_with_projectors_that_was_stopped_goes_on_with_the_same_bits(numbers, seeded, wide, tmp_path):
    spec = FitSpec(epochs=3, batch_size=8, learning_rate=0.01)

    def run(seed, before_epoch=lambda _epoch: None):
        torch.manual_seed(seed)
        student = DigitsResNet(4, (8, 16))
        model, loss = student_and_loss(numbers, [(Part("fitnet", Fitnet()), "auto")], wide, student, images())
        hooks = FitHooks(before_epoch=before_epoch, before_step=loss.before_step)
        file = tmp_path / str(id(before_epoch))
        accelerator = Accelerator(cpu=True)
        history = fit(
            model, loss, lambda _e: [images()], spec, samples=8, accelerator=accelerator, hooks=hooks, resume=file
        )
        return history, tensors_of(model)

    def stop(epoch):
        if epoch == 2 and not stopped:
            stopped.append(epoch)
            raise StoppedError

    stopped: list[int] = []
    history, whole = run(5)
    with pytest.raises(StoppedError):
        run(5, stop)
    again, resumed = run(6, stop)
    assert again == history
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_in_eval_mode_the_tapped_student_is_the_student(numbers, narrow, wide):
    model, _ = student_and_loss(numbers, [(Part("fitnet", Fitnet()), "auto")], wide, narrow, images())
    x = images().inputs
    assert torch.equal(model.eval()(*x), narrow(*x))


def test_measuring_shapes_moves_no_statistics(numbers, narrow, wide):
    before = tensors_of(narrow)
    student_and_loss(numbers, [(Part("fitnet", Fitnet()), "auto")], wide, narrow.train(), images())
    assert narrow.training
    assert all(torch.equal(value, before[name]) for name, value in tensors_of(narrow).items())


def test_without_features_the_student_itself_is_fitted(numbers, narrow, wide):
    model, loss = student_and_loss(numbers, [(Part("kd", LogitKd()), "auto")], wide, narrow, images())
    assert model is narrow
    assert set(loss(narrow, images())) == {"kd", "hard"}


def test_taps_of_the_recipe_are_used(numbers, narrow, wide):
    part = Part("fitnet", Fitnet())
    model, _ = student_and_loss(numbers, [(part, (("blocks.*", "blocks.[12]"),))], wide, narrow, images())
    assert [pair.name for pair in model.parts[0].pairs] == ["blocks/0~blocks/1", "blocks/1~blocks/2"]
    with pytest.raises(RecipeError, match=r"no module of the teacher \(DigitsResNet\) matches the tap 'blocks\.7'"):
        student_and_loss(numbers, [(part, (("blocks.0", "blocks.7"),))], wide, narrow, images())


def test_a_teacher_that_gives_outputs_alone_is_refused_by_name(numbers, narrow):
    def kept(batch):
        return Outputs(torch.zeros(len(batch.ids), 10))

    with pytest.raises(StageError) as caught:
        student_and_loss(numbers, [(Part("fitnet", Fitnet()), "auto")], kept, narrow, images())
    assert str(caught.value) == (
        "distiller 'fitnet' compares features, but the teacher (function) gives outputs alone; use one PyTorch "
        "teacher that runs beside the student, or a distiller of outputs, such as 'logit-kd'"
    )


class Stray(Fitnet):
    def projectors(self, student, teacher):
        return {"nowhere": nn.Identity()}


def test_a_projector_for_no_pair_is_named(numbers, narrow, wide):
    with pytest.raises(StageError) as caught:
        student_and_loss(numbers, [(Part("x", Stray()), (("bn", "bn"),))], wide, narrow, images())
    assert str(caught.value) == (
        "distiller 'x' gives a projector for 'nowhere', which is no pair of its taps; it has bn~bn"
    )


def test_teacher_and_student_of_other_classes_are_named_through_the_whole_loss(numbers, online, seeded, narrow):
    other = online(seeded(lambda: DigitsResNet(4, (8,), classes=7)))
    model, loss = student_and_loss(numbers, [(Part("kd", LogitKd()), "auto")], other, narrow, images())
    with pytest.raises(StageError) as caught:
        loss(model, images())
    assert str(caught.value).startswith(
        "distiller 'logit-kd' compares logits of one shape, but the student's are (8, 10) and the teacher's (8, 7)"
    )


class Checkpointed(nn.Module):
    """Its layer runs in a checkpoint, or is frozen."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.layer, self.head, self.reentrant = nn.Linear(8, 8), nn.Linear(8, 10), reentrant
        if reentrant is None:
            self.layer.requires_grad_(requires_grad=False)

    def forward(self, x):
        x = x.flatten(1)[:, :8]
        if self.reentrant is None:
            return self.head(self.layer(x))
        return self.head(checkpoint(self.layer, x.requires_grad_(), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False, None])
def test_a_tap_that_carries_no_gradient_is_refused(numbers, online, reentrant):
    teacher, taps = online(Checkpointed(reentrant=False)), [("layer", "layer")]
    model, loss = student_and_loss(
        numbers, [(Part("fitnet", Fitnet()), taps)], teacher, Checkpointed(reentrant), images()
    )
    if reentrant is False:
        torch.stack(list(loss(model.train(), images()).values())).sum().backward()
        assert model.student.layer.weight.grad.any()
        return
    with pytest.raises(StageError) as caught:
        loss(model.train(), images())
    assert str(caught.value) == (
        "tap 'layer' of the student carries no gradient, so comparing it would teach nothing: the layers up to it are "
        "frozen, or run in torch.utils.checkpoint with use_reentrant=True; tap a layer that trains, or use "
        "use_reentrant=False"
    )
