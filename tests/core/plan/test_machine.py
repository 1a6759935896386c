"""What of the machine and the environment a key holds, part by part."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdq_core.errors import RecipeError
from kdq_core.plan import machine
from kdq_core.plan.machine import check_devices, check_gpu, machine_parts
from kdq_core.recipe import gpus
from kdq_core.recipe.spec import Site
from kdq_flows.run.supervisor import child_environment

VERSIONS = {
    "closed": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC: 11.4",
    "open": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs@x)  Tue Jan 14\n",
}
FIRST, SECOND = "GPU-1111aaaa-0000-0000-0000-000000000000", "GPU-2222bbbb-0000-0000-0000-000000000000"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable that is held, no list of devices, and no `nvidia-smi`."""
    for name in list(os.environ):
        if machine._is_held(name):
            monkeypatch.delenv(name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    gpus._told_by_smi.cache_clear()


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A `/proc` of two cores and two GPUs of different models."""
    (tmp_path / "driver/nvidia/gpus").mkdir(parents=True)
    (tmp_path / "cpuinfo").write_text(
        "processor : 0\nflags : fpu avx2 avx512f amx_bf16\nprocessor : 1\nflags : fpu avx2"
    )
    (tmp_path / "driver/nvidia/version").write_text(VERSIONS["closed"])
    for slot, model, uuid in (("0000:c1:00.0", "NVIDIA L4", SECOND), ("0000:17:00.0", "NVIDIA H200", FIRST)):
        folder = tmp_path / "driver/nvidia/gpus" / slot
        folder.mkdir()
        (folder / "information").write_text(
            f"Model: \t\t {model}\nIRQ:   \t\t 16\nGPU UUID: \t {uuid}\nBus Type: \t PCIe\n"
        )
    return tmp_path


def site(device: str = "cpu", **fields: object) -> Site:
    return Site.model_validate({"home": "/nowhere", "device": device, **fields})


def smi(folder: Path, script: str) -> None:
    """Put a program `nvidia-smi` on PATH."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/nvidia-smi").write_text(f"#!{sys.executable}\n{script}\n")
    (folder / "bin/nvidia-smi").chmod(0o755)


def test_on_the_cpu_the_parts_are_threads_precision_instructions_and_python(proc: Path) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert machine_parts(site(threads=3), proc=proc) == {
        "kind": "cpu", "precision": "fp32", "threads": 3, "machine": os.uname().machine, "isa": "amx_bf16 avx2 avx512f",
        "python": python,
    }  # fmt: skip


def test_each_field_of_the_site_that_matters_changes_one_part(proc: Path) -> None:
    base = machine_parts(site(), proc=proc)
    for fields, part in (({"threads": 7}, "threads"), ({"precision": "bf16"}, "precision")):
        other = machine_parts(site(**fields), proc=proc)  # type: ignore[arg-type]
        assert {name for name in base if base[name] != other[name]} == {part}
    assert machine_parts(site(home="/elsewhere", tracking_uri="sqlite://", prefect_api="http://x"), proc=proc) == base


def test_a_machine_that_tells_nothing_has_parts_too(tmp_path: Path) -> None:
    assert machine_parts(site(), proc=tmp_path / "gone")["isa"] == ""
    parts = machine_parts(site("cuda"), proc=tmp_path / "gone")
    assert (parts["gpu"], parts["driver"]) == ("unknown", "unknown")


@pytest.mark.parametrize(("version", "number"), [("closed", "535.104.05"), ("open", "570.86.15")])
def test_for_cuda_the_gpu_and_the_driver_are_parts(version: str, number: str, proc: Path) -> None:
    (proc / "driver/nvidia/version").write_text(VERSIONS[version])
    parts = machine_parts(site("cuda:0"), proc=proc)
    assert (parts["kind"], parts["gpu"], parts["driver"]) == ("cuda", "NVIDIA H200", number)


@pytest.mark.parametrize(
    ("device", "visible", "model"),
    [
        ("cuda", None, "NVIDIA H200"), ("cuda:0", "", "NVIDIA H200"), ("cuda:1", None, "NVIDIA L4"),
        ("cuda:0", "1", "NVIDIA L4"), ("cuda:0", "1,0", "NVIDIA L4"), ("cuda:1", "1, 0", "NVIDIA H200"),
        ("cuda:1", "1", "NVIDIA L4"), ("cuda", SECOND, "NVIDIA L4"), ("cuda", "GPU-2222", "NVIDIA L4"),
        ("cuda:5", None, "unknown"), ("cuda", "MIG-3333", "MIG-3333"),
    ],
)  # fmt: skip
def test_the_gpu_is_the_one_that_the_name_means_under_cuda_visible_devices(
    device: str, visible: str | None, model: str, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine_parts(site(device), proc=proc)["gpu"] == model


def test_nvidia_smi_is_asked_where_the_driver_has_no_files(tmp_path: Path, proc: Path) -> None:
    smi(tmp_path, f"print('{FIRST}, NVIDIA A100-SXM4-80GB, 580.1')\nprint('{SECOND}, NVIDIA T4, 580.1')")
    assert machine_parts(site("cuda:1"), proc=proc)["gpu"] == "NVIDIA L4"
    for missing in ("version", "gpus"):
        (proc / "driver/nvidia" / missing).rename(proc / missing)
        parts = machine_parts(site("cuda:1"), proc=proc)
        assert (parts["gpu"], parts["driver"]) == ("NVIDIA T4", "580.1")
        (proc / missing).rename(proc / "driver/nvidia" / missing)
    (proc / "driver/nvidia/gpus").rename(proc / "gpus")
    (proc / "driver/nvidia/gpus").mkdir()
    assert machine_parts(site("cuda:1"), proc=proc)["gpu"] == "NVIDIA T4"


@pytest.mark.parametrize("script", ["raise SystemExit(9)", "print('No devices were found')", "pass"])
def test_an_nvidia_smi_that_fails_leaves_the_gpu_unknown(script: str, tmp_path: Path) -> None:
    smi(tmp_path, script)
    parts = machine_parts(site("cuda"), proc=tmp_path / "gone")
    assert (parts["gpu"], parts["driver"]) == ("unknown", "unknown")


@pytest.mark.parametrize(
    "name",
    ["ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY",
     "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "MKL_CBWR", "MKL_DYNAMIC", "MKL_ENABLE_INSTRUCTIONS",
     "OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_DYNAMIC", "OMP_THREAD_LIMIT", "FBGEMM_NO_AUTOVEC",
     "CUBLAS_EMULATE_SINGLE_PRECISION", "CUBLAS_EMULATION_STRATEGY", "CUBLASLT_WORKSPACE_SIZE", "OV_CPU_MAX_ISA",
     "ORT_MLAS_QKGEMM_S8_APPROX_VNNI", "NPY_DISABLE_CPU_FEATURES", "GLIBC_TUNABLES", "TORCH_BLAS_PREFER_CUBLASLT"],
)  # fmt: skip
def test_a_variable_that_results_depend_on_is_a_part_of_its_own(
    name: str, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = machine_parts(site(), proc=proc)
    monkeypatch.setenv(name, "1")
    assert machine_parts(site(), proc=proc) == base | {"environment": {name: "1"}}


@pytest.mark.parametrize(
    "name",
    ["ONEDNN_VERBOSE", "DNNL_VERBOSE", "ONEDNN_VERBOSE_TIMESTAMP", "MKL_VERBOSE", "DNNL_JIT_DUMP", "ONEDNN_JIT_PROFILE",
     "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "FBGEMM_STATS_ENABLE", "CUBLAS_LOGINFO_DBG", "TORCH_LOGS", "TORCH_HOME",
     "OPENBLAS_VERBOSE", "CUDA_VISIBLE_DEVICES", "GOMP_SPINCOUNT", "ACCELERATE_MIXED_PRECISION", "HOME"],
)  # fmt: skip
def test_a_variable_that_only_prints_or_that_no_stage_sees_is_none(
    name: str, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = machine_parts(site(), proc=proc)
    monkeypatch.setenv(name, "1")
    assert machine_parts(site(), proc=proc) == base


def test_what_the_supervisor_sets_for_every_stage_is_not_held() -> None:
    """Else the worker would see another environment than the plan."""
    assert not [name for name in child_environment(site()) if machine._is_held(name)]


def test_torch_is_not_imported() -> None:
    child = (
        "import sys; from kdq_core.plan.machine import machine_parts; from kdq_core.recipe.site import Site; "
        "machine_parts(Site(home='/nowhere', device='cuda')); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


def no_gpu(device: str, **folders: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        check_gpu(device, **folders)
    return str(caught.value)


def test_a_gpu_that_cannot_be_there_is_refused_before_anything_runs(
    proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "version_of", lambda _: "2.9.1")
    check_gpu("cpu", proc=tmp_path / "gone", dev=tmp_path)
    check_gpu("cuda:1", proc=proc, dev=tmp_path)
    assert no_gpu("cuda:2", proc=proc, dev=tmp_path) == (
        "the device 'cuda:2' was asked for, but the driver lists 2 GPUs; set KDQ_DEVICE=cpu, or a number below 2"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert no_gpu("cuda", proc=proc, dev=tmp_path).startswith("the device 'cuda' was asked for, but the driver lists 2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert no_gpu("cuda", proc=proc, dev=tmp_path) == (
        "the device 'cuda' was asked for, but CUDA_VISIBLE_DEVICES is '-1', which hides all; set KDQ_DEVICE=cpu, or "
        "unset it"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-x")
    check_gpu("cuda", proc=proc, dev=tmp_path)
    monkeypatch.setattr(machine, "version_of", lambda _: "2.9.1+cpu")
    assert no_gpu("cuda", proc=proc, dev=tmp_path) == (
        "the device 'cuda' was asked for, but torch 2.9.1+cpu is a build for CPUs; set KDQ_DEVICE=cpu, or install a "
        "CUDA build"
    )


@pytest.mark.parametrize("name", ["nvidia0", "nvhost-gpu", "nvmap", "dxg", "kfd"])
def test_a_gpu_is_refused_without_driver_and_device_file_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "version_of", lambda _: None)
    folders = {"proc": tmp_path / "gone", "dev": tmp_path / "dev"}
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvme0").touch()
    assert no_gpu("cuda:0", **folders) == (
        "the device 'cuda:0' was asked for, but this machine has no driver of a GPU; set KDQ_DEVICE=cpu, or install a "
        "driver"
    )
    (tmp_path / "dev" / name).touch()
    check_gpu("cuda:0", **folders)


def test_gpus_of_several_models_are_refused_and_each_must_be_there(
    proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "version_of", lambda _: "2.9.1")
    both = site(device="cuda:0", devices=("cuda:0", "cuda:1"))
    with pytest.raises(RecipeError) as caught:
        check_devices(both, proc=proc, dev=tmp_path)
    assert str(caught.value) == (
        "KDQ_DEVICES names GPUs of several models: 'cuda:0' is 'NVIDIA H200', 'cuda:1' is 'NVIDIA L4'; name those of "
        "one model, because keys hold the model: a result would depend on which of them is free"
    )
    with pytest.raises(RecipeError, match="the device 'cuda:2' was asked for, but the driver lists 2 GPUs"):
        check_devices(site(device="cuda:0", devices=("cuda:0", "cuda:2")), proc=proc, dev=tmp_path)
    check_devices(site(device="cuda:1"), proc=proc, dev=tmp_path)


@pytest.mark.parametrize(
    ("visible", "models", "found"),
    [
        (None, ["H200", "H200", "L4"], ("cuda:0", "cuda:1")), (None, ["L4", "H200"], ("cuda:0",)), (None, [], ("cpu",)),
        ("1,0", ["H200", "H200"], ("cuda:0", "cuda:1")), ("2", ["H200", "H200", "L4"], ("cuda:0",)),
        ("", ["L4"], ("cpu",)),        ("-1", ["L4"], ("cpu",)), ("7", ["L4"], ("cpu",)),
    ],
)  # fmt: skip
def test_auto_means_all_visible_gpus_of_the_first_ones_model(
    visible: str | None, models: list[str], found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    listed = ("580.1", [gpus.Gpu(f"GPU-{n}", model) for n, model in enumerate(models)])
    monkeypatch.setattr(gpus, "described", lambda _proc=None: listed)
    monkeypatch.setattr(gpus, "cpu_build", lambda: False)
    assert gpus.read_devices("auto") == found
    monkeypatch.setattr(gpus, "cpu_build", lambda: True)
    assert gpus.read_devices(" auto ") == ("cpu",)


def test_uuids_that_the_driver_hides_are_asked_of_nvidia_smi(proc: Path, tmp_path: Path) -> None:
    for file in (proc / "driver/nvidia/gpus").glob("*/information"):
        file.write_text(file.read_text().replace("1111aaaa", "????????"))
    smi(tmp_path, f"print('{FIRST}, NVIDIA H200, 580.1')\nprint('{SECOND}, NVIDIA L4, 580.1')")
    assert gpus.gpu_of("cuda:0", proc) == (FIRST, "NVIDIA H200")
