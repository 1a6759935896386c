"""Leases, a lack of memory and several devices, on real GPUs; stand-ins on the CPU are beside the code they test."""

import subprocess
import sys
from pathlib import Path

import pytest

from kdq_core.plugins.contract import Needs
from kdq_core.recipe.gpus import usable
from kdq_core.recipe.spec import Site
from kdq_flows.run.holders import holders
from kdq_flows.run.leases import lease, physical_device
from tests.flows.leasing import CPU, within
from tests.flows.test_at_once import MODEL, SHARED, compared, trained_on

pytestmark = pytest.mark.gpu

OOM = """
import sys
import torch
from accelerate import Accelerator
from pathlib import Path
from torch import nn
from kdq_core.recipe.spec import FitSpec
from kdq_core.tensors import Batch
from kdq_core.training.fit import FitHooks, fit

BIG, ROWS = 4 << 20, 64  # an activation of 1 GiB for the whole batch
def batches(epoch):
    x = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(epoch))
    yield Batch(inputs=(x,), targets=(x.sum(1) > 0).long(), ids=torch.arange(ROWS))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 2)
    def forward(self, x):
        x = self.first(x)
        wide = x.repeat(1, BIG // 64).mul(1.0)
        return self.second(x + wide.reshape(len(x), -1, 64).mean(1))

def trained(folder, said):
    torch.manual_seed(0)
    model = Net()
    hooks = FitHooks(on_smaller=said.append)
    loss = lambda m, b: {"hard": nn.functional.cross_entropy(m(*b.inputs), b.targets)}
    fit(model, loss, batches, FitSpec(epochs=2, batch_size=ROWS), samples=ROWS, accelerator=Accelerator(), hooks=hooks,
        resume=Path(folder) / "fit.safetensors")
    return [p.detach().cpu() for p in model.parameters()]

(Path(sys.argv[1]) / "a").mkdir()
(Path(sys.argv[1]) / "b").mkdir()
said = []
whole = trained(Path(sys.argv[1]) / "a", said)
assert not said, said
torch.cuda.empty_cache()
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction((2 << 30) / total)
cut = trained(Path(sys.argv[1]) / "b", said)
assert said and said[0].startswith("out of memory: goes on with 32 samples at a time"), said
for one, other in zip(whole, cut):
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
"""


def gpus() -> tuple[str, ...]:
    return tuple(device for device in usable() if device != "cpu")


def test_a_card_has_the_uuid_that_nvidia_smi_tells_and_its_lease_leaves_the_cpu_free(tmp_path: Path) -> None:
    words = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert [physical_device(device) for device in gpus()] == told[: len(gpus())]
    site = Site(home=tmp_path, device=gpus()[0], leases=tmp_path / "leases")
    with lease(site, Needs(), check=within(1)), lease(site, CPU, check=within(1)):
        assert {one.device for one in holders(site) if one.owner} == {told[0], "cpu-1"}
        with pytest.raises(TimeoutError), lease(site, Needs(), check=within(0.2)):
            pass


def test_a_fit_survives_a_real_lack_of_memory_with_equal_gradients(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OOM, str(tmp_path)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


def test_two_gpus_give_the_curves_and_weights_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if len(gpus()) < 2:
        pytest.skip("there is one GPU")
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    one, two = (
        trained_on(tmp_path / f"home{n}", SHARED.replace("DEVICES", str(n)), {"KDQ_DEVICES": "cuda:0,cuda:1"})
        for n in (1, 2)
    )
    compared(one, two)


def test_a_recipe_trains_on_a_gpu_and_is_exported_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    given = {"KDQ_DEVICES": "auto", "KDQ_GPU_SHARE": "0.5"}
    assert trained_on(tmp_path / "home", SHARED.replace("DEVICES", "1"), given).keys() == {"train_teacher", "distill"}
