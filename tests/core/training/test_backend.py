"""Switches of torch that a plug-in left otherwise are set back before a stage computes anything."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import backends
from torch.backends import cuda, cudnn, mkldnn

from kdq_core.training.backend import plain_torch

MATMUL = cuda.matmul
SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(3)),
    "deterministic": (torch.get_deterministic_debug_mode, lambda: torch.set_deterministic_debug_mode("error")),
    "fill": (
        lambda: torch.utils.deterministic.fill_uninitialized_memory,
        lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", True),
    ),
    "dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "device": (lambda: torch.zeros(1).device, lambda: torch.set_default_device("meta")),
    "denormal": (lambda: str(float(torch.tensor(1e-320, dtype=torch.float64))), lambda: torch.set_flush_denormal(True)),
    "grad": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "autocast cpu": (lambda: torch.is_autocast_enabled("cpu"), lambda: torch.set_autocast_enabled("cpu", True)),
    "autocast cuda": (lambda: torch.is_autocast_enabled("cuda"), lambda: torch.set_autocast_enabled("cuda", True)),
    "generic": (lambda: backends.fp32_precision, lambda: setattr(backends, "fp32_precision", "tf32")),
    "medium": (torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("medium")),
    "matmul allow": (lambda: MATMUL.allow_tf32, lambda: setattr(MATMUL, "allow_tf32", True)),
    "matmul": (lambda: ieee(MATMUL.fp32_precision), lambda: setattr(MATMUL, "fp32_precision", "tf32")),
    "cudnn allow": (lambda: cudnn.allow_tf32, lambda: setattr(cudnn, "allow_tf32", False)),
    "cudnn": (lambda: cudnn.fp32_precision, lambda: setattr(cudnn, "fp32_precision", "ieee")),
    "cudnn conv": (lambda: cudnn.conv.fp32_precision, lambda: setattr(cudnn.conv, "fp32_precision", "ieee")),
    "cudnn rnn": (lambda: cudnn.rnn.fp32_precision, lambda: setattr(cudnn.rnn, "fp32_precision", "ieee")),
    "cudnn enabled": (lambda: cudnn.enabled, lambda: setattr(cudnn, "enabled", False)),
    "cudnn benchmark": (lambda: cudnn.benchmark, lambda: setattr(cudnn, "benchmark", True)),
    "cudnn deterministic": (lambda: cudnn.deterministic, lambda: setattr(cudnn, "deterministic", True)),
    "cudnn depthwise": (lambda: cudnn.depthwise_kernel, lambda: setattr(cudnn, "depthwise_kernel", "native")),
    "mkldnn": (lambda: mkldnn.fp32_precision, lambda: mkldnn.set_flags(_fp32_precision="bf16")),
    "mkldnn matmul": (lambda: ieee(mkldnn.matmul.fp32_precision), lambda: set_precision(mkldnn.matmul)),
    "mkldnn conv": (lambda: mkldnn.conv.fp32_precision, lambda: set_precision(mkldnn.conv)),
    "mkldnn rnn": (lambda: mkldnn.rnn.fp32_precision, lambda: set_precision(mkldnn.rnn)),
    "mkldnn enabled": (lambda: mkldnn.enabled, lambda: setattr(mkldnn, "enabled", False)),
    "mkldnn deterministic": (lambda: mkldnn.deterministic, lambda: setattr(mkldnn, "deterministic", True)),
    "flash": (cuda.flash_sdp_enabled, lambda: cuda.enable_flash_sdp(False)),
    "efficient": (cuda.mem_efficient_sdp_enabled, lambda: cuda.enable_mem_efficient_sdp(False)),
    "math": (cuda.math_sdp_enabled, lambda: cuda.enable_math_sdp(False)),
    "cudnn sdp": (cuda.cudnn_sdp_enabled, lambda: cuda.enable_cudnn_sdp(False)),
    "math sdp": (cuda.fp16_bf16_reduction_math_sdp_allowed, lambda: cuda.allow_fp16_bf16_reduction_math_sdp(True)),
    "mha": (backends.mha.get_fastpath_enabled, lambda: backends.mha.set_fastpath_enabled(False)),
    "nnpack": (torch._C._get_nnpack_enabled, lambda: backends.nnpack.set_flags(False)),
    **{
        name: (lambda name=name: getattr(MATMUL, name), lambda name=name, value=value: setattr(MATMUL, name, value))
        for name, value in (
            ("allow_fp16_reduced_precision_reduction", False),
            ("allow_bf16_reduced_precision_reduction", False),
            ("allow_fp16_accumulation", True),
        )
    },
}  # fmt: skip
"""How each switch is read, and how it is set to another value than KDQ's."""


def ieee(precision: str) -> str:
    """Two words for one thing, where nothing more general is set."""
    return "ieee" if precision == "none" else precision


def set_precision(operators: Any) -> None:
    operators.fp32_precision = "bf16"


@pytest.fixture(autouse=True)
def left_as_found() -> Iterator[None]:
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    plain_torch(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_that_is_set_otherwise_is_set_back(name: str) -> None:
    read, disturb = SWITCHES[name]
    plain_torch(1)
    meant = read()
    disturb()
    assert read() != meant
    plain_torch(1)
    assert {name: read() for name, (read, _) in SWITCHES.items()}[name] == meant


def test_all_at_once_are_set_back_and_torch_still_answers() -> None:
    """Old and new switches of one thing that differ make torch refuse to read either."""
    plain_torch(1)
    meant = {name: read() for name, (read, _) in SWITCHES.items()}
    for _, disturb in SWITCHES.values():
        disturb()
    plain_torch(1)
    assert {name: read() for name, (read, _) in SWITCHES.items()} == meant


def test_torch_chooses_the_libraries_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for the CPU refuses every other value."""
    asked: list[tuple[str, str]] = []
    for name in ("preferred_linalg_library", "preferred_blas_library"):
        monkeypatch.setattr(cuda, name, lambda value, name=name: asked.append((name, value)))
    plain_torch(1)
    assert asked == [("preferred_linalg_library", "default"), ("preferred_blas_library", "default")]


def test_they_are_set_back_where_torch_lets_no_attribute_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn.benchmark = True
    monkeypatch.setattr(sys.modules["torch.backends"].m, "__allow_nonbracketed_mutation_flag", False)
    plain_torch(1)
    monkeypatch.undo()
    assert not cudnn.benchmark


def test_what_kdq_means_is_what_torch_begins_with() -> None:
    """So no result changes where nobody touches a switch, and none needs a part in a key."""
    child = f"""
import json, runpy
switches = runpy.run_path({__file__!r})["SWITCHES"]
from kdq_core.training.backend import plain_torch
def told(): return {{name: str(read()) for name, (read, _) in switches.items()}}
fresh = told()
plain_torch(1)
print(json.dumps([fresh, told()]))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", child], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    fresh, after = json.loads(done.stdout)
    differ = {name for name in fresh if fresh[name] != after[name]}
    assert differ - {"threads"} == {"deterministic", "fill"}
    assert (after["threads"], after["deterministic"], after["fill"]) == ("1", "1", "False")


def test_torch_has_no_switch_that_is_not_on_the_list() -> None:
    """Of those that are attributes; left alone: Apple's and AMD's, and a choice for grouped products, since 2.14."""
    settable = {
        f"{module}.{name}"
        for module in (
            "cudnn",
            "mkldnn",
            "cudnn.rnn",
            "opt_einsum",
            "nnpack",
            "mha",
            "openmp",
            "mkl",
            "cpu",
            "quantized",
        )
        for name, value in vars(type(sys.modules[f"torch.backends.{module}"])).items()
        if type(value).__name__ in ("ContextProp", "_FP32Precision")
    }
    assert settable <= {
        "cudnn.enabled", "cudnn.deterministic", "cudnn.benchmark", "cudnn.benchmark_limit", "cudnn.allow_tf32",
        "cudnn.conv", "cudnn.fp32_precision", "cudnn.depthwise_kernel", "cudnn.rnn.fp32_precision", "mkldnn.enabled",
        "mkldnn.deterministic", "mkldnn.allow_tf32", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn",
        "mkldnn.fp32_precision", "opt_einsum.enabled", "opt_einsum.strategy",
    }  # fmt: skip
    assert len(settable) > 12
    assert set(re.findall(r'name == "(\w+)"', inspect.getsource(type(MATMUL).__setattr__))) - {
        "prefer_cublaslt_grouped_gemm"
    } == {
        "allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation", "fp32_precision",
    }  # fmt: skip
    calls = {name for name in cuda.__all__ if re.match(r"enable_|allow_|preferred_", name)}
    assert calls - {"preferred_rocm_fa_library"} == {
        "preferred_linalg_library", "preferred_blas_library", "enable_cudnn_sdp", "enable_flash_sdp",
        "enable_mem_efficient_sdp", "enable_math_sdp", "allow_fp16_bf16_reduction_math_sdp",
    }  # fmt: skip
