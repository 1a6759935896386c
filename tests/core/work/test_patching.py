"""`kdq explain` on a run with planted faults: a layer, a class and a slice of the data that int8 loses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

from kdq_core.errors import PluginError, RecipeError
from kdq_core.recipe.spec import Rule
from kdq_core.store.records import EvaluationReport
from kdq_core.work.effects import Explained
from kdq_core.work.parts import columns_of
from kdq_flows.facts.result import RunResult, StageFacts
from kdq_flows.report import kept
from kdq_flows.report.explain import explained, with_rules

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift = nn.Conv2d(2, 2, 1, groups=2, bias=False)
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 3, padding=1)
        self.mid = nn.Linear(128, 10)
        self.head = nn.Linear(10, 10)

    def forward(self, x):
        x = torch.relu(self.stem(self.lift(x)))
        x = torch.max_pool2d(torch.relu(self.wide(x)), 2)
        return self.head(self.mid(x.flatten(1)))
"""
THOUSAND = 1000.0


def plant(folder: Path, fault: str) -> None:
    """Write data and a trained net that answers them as well as without the fault, in float."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16).float(), torch.tensor(digits.target)
    faint = torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < 0.2
    x = torch.zeros(len(labels), 2, 8, 8)
    x[~faint, 0], x[faint, 1] = images[~faint], images[faint]
    (folder / f"planted_{fault}_net.py").write_text(NET)  # each a name of its own, because Python keeps modules
    net = trained(x, labels)
    with torch.no_grad():
        if fault == "parts":  # faint samples are below the LSB of the input, class 3 below that of `mid`
            x[faint] /= THOUSAND
            net.lift.weight[1] *= THOUSAND
            net.mid.weight[3] /= THOUSAND
            net.mid.bias[3] /= THOUSAND
            net.head.weight[3] *= THOUSAND
        else:
            one = strongest(net, x)  # a channel that the training left dead would do no harm
            net.wide.weight[one] *= THOUSAND
            net.wide.bias[one] *= THOUSAND
            net.mid.weight[:, 16 * one : 16 * (one + 1)] /= THOUSAND
        assert (net(x).argmax(1) == labels).float().mean() > 0.95
    writer = np.arange(len(labels)) % 4
    arrays = {"x": x.numpy(), "y": labels.numpy(), "faint": faint.numpy().astype(int), "writer": writer}
    np.savez(folder / "data.npz", **arrays)
    save_file(net.state_dict(), folder / "net.safetensors")


def strongest(net: Any, x: torch.Tensor) -> int:
    """The channel of `wide` with the greatest mean behind its ReLU."""
    means: list[torch.Tensor] = []
    hook = net.wide.register_forward_hook(lambda _net, _given, out: means.append(out.relu().mean((0, 2, 3))))
    net(x)
    hook.remove()
    return int(means[0].argmax())


def trained(x: torch.Tensor, labels: torch.Tensor) -> Any:
    names: dict[str, Any] = {}
    exec(NET, names)
    torch.manual_seed(0)
    net: Any = names["Net"]()
    with torch.no_grad():
        net.lift.weight.fill_(1)
        net.head.weight.copy_(torch.eye(10))
        net.head.bias.zero_()
    learned = [*net.stem.parameters(), *net.wide.parameters(), *net.mid.parameters()]
    optimizer = torch.optim.Adam(learned, 1e-2)
    for _ in range(3):
        for part in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), labels[part]).backward()
            optimizer.step()
    return net.eval()


def ran(stages_of: Any, folder: Path, rules: tuple[Rule, ...] = ()) -> Any:
    """Quantize, export and evaluate; gives the run."""
    [net] = folder.glob("planted_*_net.py")
    options = {"file": str(folder / "data.npz"), "model": f"{net}:Net", "test": 0.3}
    run = stages_of(
        folder / "home",
        name="planted",
        workload={"use": "arrays", "options": options},
        student={"source": "checkpoint", "file": str(folder / "net.safetensors")},
        stages=["quantize", "export", "evaluate"],
        quantize={"use": "static", "rules": [rule.model_dump(exclude_none=True) for rule in rules]},
        evaluate=["quality", "size"],
        gates=[],
    )
    for node in run.plan.nodes:
        run.stage(node.name)
    return run


def record_of(run: Any) -> kept.RunRecord:
    facts = tuple(StageFacts(name=n, key=e.manifest.key, state="ran", seconds=1) for n, e in run.entries.items())
    result = RunResult(run="planted-1", status="completed", seconds=1.0, stages=facts, models={})
    return kept.RunRecord(result=result, plan=kept.bare(run.plan), recipe="name: planted\n", began=0.0)


def found_in(run: Any, **asked: Any) -> Explained:
    return explained(run.site, record_of(run), samples=512, split="validation", tell=lambda _text: None, **asked)


def int8_of(run: Any) -> tuple[float, int]:
    report = run.entries["evaluate"].record
    assert isinstance(report, EvaluationReport)
    size = report.value("int8", "bytes")
    top1 = report.value("int8", "top1")
    assert size is not None
    assert top1 is not None
    return top1, int(size)


@pytest.fixture(scope="module")
def parts(stages_of: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Explained]:
    folder = tmp_path_factory.mktemp("parts")
    plant(folder, "parts")
    run = ran(stages_of, folder)
    return run, found_in(run)


@pytest.mark.rare
def test_a_planted_class_and_a_planted_slice_are_found(parts: tuple[Any, Explained]) -> None:
    run, found = parts
    assert found.files is not None
    assert (found.flips, found.files.in_int8) == (0, int8_of(run)[0])  # the file answers as its simulation
    worst = {(part.column, part.value): part for part in found.files.parts[:2]}
    assert worst.keys() == {("faint", "1"), ("class", "3")}
    assert all(part.verdict == "lost" and part.high < -0.4 for part in worst.values())
    assert not [part for part in found.files.parts if part.column == "faint" and part.value == "0" and part.low < -0.2]
    flips = found.files.flips
    assert flips
    assert all(flip.in_float == flip.label != flip.in_int8 for flip in flips if flip.kind == "lost")
    assert found.files.lost - found.files.gained == round(
        (found.files.in_float - found.files.in_int8) * found.files.samples
    )


@pytest.mark.rare
def test_the_patch_applied_gives_what_it_predicts(parts: tuple[Any, Explained], stages_of: Any) -> None:
    run, found = parts
    assert {rule.match for rule in found.rules} >= {"lift", "head"}
    assert found.patched is not None
    assert found.files is not None
    assert found.patched.quality is not None
    assert found.patched.quality > found.files.in_float - 0.01 > found.files.in_int8 + 0.1
    again = ran(stages_of, run.site.home.parent, found.rules)
    assert int8_of(again) == pytest.approx((found.patched.quality, found.patched.bytes), abs=1e-9)  # to the byte
    assert 0 < found.patched.speedup_low <= found.patched.speedup <= found.patched.speedup_high
    assert 0 < found.patched.ms < 10
    assert found.patched.low is not None
    assert found.patched.low > -0.02
    recipe = yaml.safe_load(with_rules("name: x\nworkload: digits\n", found.rules))
    assert [Rule.model_validate(rule) for rule in recipe["quantize"]["rules"]] == list(found.rules)


@pytest.mark.rare
def test_a_slice_that_the_data_do_not_have_is_an_error_that_names_theirs(parts: tuple[Any, Explained]) -> None:
    with pytest.raises(RecipeError) as caught:
        found_in(parts[0], slices=["feint"])
    assert str(caught.value) == (
        "--slice 'feint': the data have no such column; did you mean 'faint'? They have faint, writer"
    )


@pytest.mark.rare
def test_a_damaged_prediction_file_is_told(parts: tuple[Any, Explained]) -> None:
    from kdq_core.plan.view import RunView

    run, _ = parts
    entry = run.entries["evaluate"]
    path = next(one.path for one in entry.record.predictions if one.model == "int8")
    whole = entry.file(path).read_bytes()
    entry.file(path).chmod(0o644)
    entry.file(path).write_bytes(whole[:-4])
    try:
        with pytest.raises(Exception, match=r"the predictions of the int8 model .* should have [\d,]+ bytes") as caught:
            RunView(run.plan, run.entries).predictions("int8")
        assert "run the recipe again: KDQ drops the damaged entry and computes it anew" in str(caught.value)
    finally:
        entry.file(path).write_bytes(whole)


def test_a_workload_without_columns_and_one_with_too_few_values_are_told() -> None:
    class Bare:
        def columns(self, split: str) -> dict[str, Any]:
            return {}

    class Short:
        def columns(self, split: str) -> dict[str, Any]:
            return {"speaker": np.arange(3)}

    with pytest.raises(RecipeError) as none:
        columns_of(Bare(), "test", 5, ["speaker"])  # type: ignore[arg-type]
    assert str(none.value) == (
        "--slice 'speaker': the workload names no columns of its data; give it a method columns(split), or leave "
        "--slice out"
    )
    assert columns_of(Bare(), "test", 5) == {}  # type: ignore[arg-type]
    with pytest.raises(PluginError) as short:
        columns_of(Short(), "test", 5)  # type: ignore[arg-type]
    assert str(short.value) == (
        "the workload's column 'speaker' has the shape (3,), but the split 'test' has 5 samples; columns(split) must "
        "give one value for each, in the order of batches(split)"
    )


@pytest.mark.rare
def test_a_planted_layer_is_found_and_its_patch_restores_the_quality(stages_of: Any, tmp_path: Path) -> None:
    plant(tmp_path, "layer")
    found = found_in(ran(stages_of, tmp_path))
    assert found.effects[0].layer == "wide"
    assert found.origin is not None
    assert (found.origin.layer, found.origin.role) == ("wide", "weights")
    assert found.files is not None
    assert found.patched is not None
    assert found.patched.quality is not None
    assert found.patched.quality > found.files.in_float - 0.01 > found.files.in_int8 + 0.5  # 5 of the 539 samples
    again = ran(stages_of, tmp_path, found.rules)
    assert int8_of(again)[0] == pytest.approx(found.patched.quality, abs=0.003)
