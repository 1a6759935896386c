"""Sets torch's process-wide switches that change results."""

from __future__ import annotations

from typing import Any

import torch


def plain_torch(threads: int) -> None:
    """Set every switch that changes results, even if an imported plug-in or library has changed it.

    Call it after the plug-ins are built and before anything is computed. The values are torch's own defaults, so keys
    need not hold them. Beyond the defaults, KDQ sets the threads and asks for deterministic algorithms; torch warns
    where it has none. KDQ does not let torch fill new memory with NaN: that only shows which operators read what nobody
    wrote, and no result depends on it.

    Limits: what a plug-in changes later holds until the process ends. Three settings are not reset: a default tensor
    type on CUDA (by the deprecated `set_default_tensor_type`, which torch cannot undo in another way), the order in
    which `sdpa_kernel` tries kernels, and the engine of torch's own quantized operators, which KDQ does not call.

    Args:
        threads: CPU threads within an operator.
    """
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would import the compiler, 2 s
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_flush_denormal(False)
    torch.set_grad_enabled(True)
    for device in ("cpu", "cuda"):
        torch.set_autocast_enabled(device, False)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # torch would write NaN into every new tensor, 5 % of a step
    backends: Any = torch.backends
    with getattr(backends, "__allow_nonbracketed_mutation")():  # a library may have frozen the flags
        _set_precision(backends)
        _set_kernels(backends)


def _set_precision(backends: Any) -> None:
    """Compute matrix products in float32, and cuDNN's convolutions and recurrent layers in TF32.

    Torch has an old and a new switch for each, and raises an error when the two differ. So the new switches are set
    first, then the old ones, which set both.
    """
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    for one in (backends, cudnn, cudnn.conv, cudnn.rnn, mkldnn.conv, mkldnn.rnn):
        one.fp32_precision = "none"
    mkldnn.set_flags(_fp32_precision="none")  # assigning to its attribute would set all backends
    cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


def _set_kernels(backends: Any) -> None:
    """Set which kernels and libraries torch chooses from."""
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.depthwise_kernel = True, False, False, "auto"
    if cudnn.is_available():
        cudnn.benchmark_limit = 10
    mkldnn.enabled, mkldnn.deterministic = True, False
    cuda.matmul.allow_fp16_reduced_precision_reduction = True
    cuda.matmul.allow_bf16_reduced_precision_reduction = True
    cuda.matmul.allow_fp16_accumulation = False
    for enable in (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp, cuda.enable_cudnn_sdp):
        enable(True)
    cuda.allow_fp16_bf16_reduction_math_sdp(False)
    cuda.preferred_linalg_library("default")
    cuda.preferred_blas_library("default")
    backends.mha.set_fastpath_enabled(True)
    backends.nnpack.set_flags(True)
    if backends.opt_einsum.is_available():
        backends.opt_einsum.set_flags(True, "auto")
