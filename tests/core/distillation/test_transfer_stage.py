"""A recipe whose student starts from the teacher's parameters and holds some of them in turn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdq_core.distillation.transfer import transfer
from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import TransferSpec
from tests.core.conftest import Tiny

FIT = {"epochs": 4, "batch_size": 32}


class Rooted(nn.Module):
    """A model with a parameter of its own, beside those of its layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.fc, self.head = nn.Linear(64, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.fc(x.flatten(1)).relu() * self.scale)


class Tied(nn.Module):
    """A model whose head has the weights of its embedding, of the brightest pixel in each row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb, self.fc, self.head = nn.Embedding(8, width), nn.Linear(width, width), nn.Linear(width, 8)
        self.head.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.fc(self.emb(x.flatten(1, 2).argmax(-1)).mean(1)).relu())


class OtherModels(Tiny):
    """The tiny workload with other models."""

    tied: bool = False

    def teacher(self) -> nn.Module:
        return Tied(8) if self.tied else Rooted(8)

    def student(self) -> nn.Module:
        return Tied(4) if self.tied else Rooted(4)


def made(stages_of: Any, tiny: Any, home: Path, **transfer: Any) -> Any:
    run = stages_of(
        home, tiny, workload={"use": "digits"}, teacher={"fit": FIT},
        distill={"fit": FIT, "transfer": {"hold": 0.5, "rounds": 1, **transfer}},
    )  # fmt: skip
    for name in ("train_teacher", "cache_teacher"):
        run.stage(name)
    return run


def weights(entry: Any) -> dict[str, Tensor]:
    return load_file(entry.file(entry.record.weights))


def test_what_is_held_keeps_the_bits_the_teacher_gave_it(stages_of: Any, tiny: Any, tmp_path: Path) -> None:
    run = made(stages_of, tiny, tmp_path)
    found = weights(run.stage("distill"))
    workload = tiny.build("workload", "digits", {})
    student, teacher = workload.student(), workload.teacher()
    teacher.load_state_dict(weights(run.entries["train_teacher"]))
    names = transfer(TransferSpec(), student, teacher)
    start = dict(student.named_parameters())
    still = [name for name in names if torch.equal(found[name], start[name])]
    assert run.entries["distill"].record.transferred == names
    assert len(names) == 6
    assert len(still) == 3  # half of them, in the one round there is


@pytest.mark.parametrize("member", [{}, {"normalize": {"mean": [0.1], "std": [1.0]}}], ids=["plain", "normalized"])
def test_a_parameter_of_the_root_module_is_trained_and_held(
    stages_of: Any, installed: Any, tmp_path: Path, member: dict[str, Any]
) -> None:
    found = distilled(stages_of, installed(OtherModels), tmp_path, members=[member])
    assert found == ("scale", "fc.weight", "fc.bias", "head.weight", "head.bias")


def test_tied_weights_are_trained_and_held_as_one(stages_of: Any, installed: Any, tmp_path: Path) -> None:
    found = distilled(stages_of, installed(OtherModels), tmp_path, tied=True)
    assert found == ("emb.weight", "fc.weight", "fc.bias", "head.bias")


def distilled(stages_of: Any, catalog: Any, home: Path, tied: bool = False, **teacher: Any) -> tuple[str, ...]:
    """What a student got from its teacher that was then trained in rounds, in which each parameter is held once."""
    run = stages_of(
        home, catalog, workload={"use": "digits", "options": {"tied": tied}}, teacher={"fit": FIT, **teacher},
        distill={"fit": FIT, "transfer": {"hold": 0.8, "rounds": 2}},
    )  # fmt: skip
    for name in ("train_teacher", "cache_teacher", "distill"):
        run.stage(name)
    return run.entries["distill"].record.transferred


def test_a_killed_transfer_goes_on_to_the_same_bits(
    stages_of: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(made(stages_of, tiny, tmp_path / "a", rounds=2).stage("distill"))
    run = made(stages_of, tiny, tmp_path / "b", rounds=2)

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["record"]["epoch"] == 3:
            raise KeyboardInterrupt

    draft = tmp_path / "draft"
    draft.mkdir()
    context = run.work("distill", draft)
    object.__setattr__(context, "emit", kill)
    with pytest.raises(KeyboardInterrupt):
        context.wired.stage.run(context)
    assert context.scratch.exists()
    found = weights(run.stage("distill"))
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_fused_views_need_something_that_is_kept(stages_of: Any, tiny: Any, tmp_path: Path) -> None:
    asked = {"teacher": {"cache": {"enabled": False}}, "distill": {"fuse_views": True}}
    with pytest.raises(RecipeError) as caught:
        stages_of(tmp_path, tiny, workload={"use": "digits"}, **asked)
    assert str(caught.value) == (
        "'distill.fuse_views' takes the mean over what is kept of the teacher, but nothing is kept; write "
        "teacher: {cache: {enabled: true}}, or leave it out"
    )
