"""The table of passing failures, one planted error of each class."""

import errno
import http.client
import socket
import ssl
import urllib.error
from collections.abc import Callable

import aiohttp
import botocore.exceptions
import pytest
import requests
import torch
import urllib3

from kdq_core.failures import FAILURES, failure_of, out_of_memory


class Coded(torch.AcceleratorError):  # type: ignore[misc]
    """As torch raises it: the number of CUDA's error is an attribute."""

    def __init__(self, code: int, text: str = "CUDA error: as the driver words it") -> None:
        super().__init__(text)
        self.error_code = code


POOL = urllib3.connectionpool.HTTPConnectionPool("nowhere")
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
PASSING: list[tuple[str, BaseException]] = [
    ("memory", MemoryError()),
    ("memory", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")),
    ("memory", Coded(2)),
    ("memory", torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later")),
    ("memory", RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 8.00 GiB total capacity)")),
    ("memory", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    ("memory", RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")),
    ("memory", RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    ("memory", RuntimeError(ALLOCATOR)),
    ("memory", RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes.")),
    ("memory", OSError(errno.ENOMEM, "Cannot allocate memory")),
    ("device", Coded(214)),
    ("device", RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be")),
    ("device", Coded(719)),
    ("device", torch.AcceleratorError("CUDA error: unspecified launch failure")),
    ("device", RuntimeError("CUDA error: the launch timed out and was terminated")),
    ("device", RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")),
    ("busy", Coded(46)),
    ("busy", RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")),
    ("busy", RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")),
    ("processes", torch.distributed.DistBackendError("NCCL error in: ../ProcessGroupNCCL.cpp:1970, remote process")),
    ("processes", torch.distributed.DistNetworkError("the client socket has timed out")),
    ("processes", RuntimeError("NCCL error in: ../torch/csrc/cuda/nccl.cpp:104, unhandled system error")),
    ("loader", RuntimeError("DataLoader worker (pid 1234) is killed by signal: Killed. ")),
    ("loader", RuntimeError("DataLoader worker (pid(s) 12, 34) exited unexpectedly")),
    ("disk", OSError(errno.EIO, "Input/output error")),
    ("disk", OSError(errno.ESTALE, "Stale file handle")),
    ("network", ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")),
    ("network", TimeoutError("timed out")),
    ("network", OSError(errno.ENETUNREACH, "Network is unreachable")),
    ("network", socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")),
    ("network", urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))),
    ("network", http.client.IncompleteRead(b"")),
    ("network", requests.exceptions.ConnectionError("refused")),
    ("network", requests.exceptions.ReadTimeout("late")),
    ("network", requests.exceptions.ChunkedEncodingError("broken")),
    ("network", urllib3.exceptions.NameResolutionError("nowhere", None, socket.gaierror("no"))),  # type: ignore[arg-type]
    ("network", urllib3.exceptions.ProtocolError("broken")),
    ("network", urllib3.exceptions.MaxRetryError(POOL, "/", ConnectionRefusedError())),
    ("network", botocore.exceptions.EndpointConnectionError(endpoint_url="http://nowhere")),
    ("network", botocore.exceptions.ReadTimeoutError(endpoint_url="http://nowhere")),
    ("network", aiohttp.ServerDisconnectedError()),
    ("network", aiohttp.ClientPayloadError("broken")),
]
LASTING = [
    ValueError("out of memory"),
    ValueError("CUDA out of memory. Tried to allocate"),
    RuntimeError("the class 'out of memory' is no class of the labels"),
    RuntimeError("CUDA error: device-side assert triggered"),
    Coded(710),
    OSError(errno.ENOENT, "No such file or directory"),
    requests.exceptions.InvalidURL("no scheme"),
    requests.exceptions.HTTPError("404 Client Error"),
    requests.exceptions.SSLError("certificate verify failed"),
    botocore.exceptions.SSLError(endpoint_url="http://nowhere", error="certificate verify failed"),
    botocore.exceptions.NoCredentialsError(),
    urllib3.exceptions.MaxRetryError(POOL, "/", ssl.SSLCertVerificationError("self-signed certificate")),
    urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate")),
]


@pytest.mark.parametrize(("name", "error"), PASSING, ids=[f"{n} {str(e)[:40] or type(e).__name__}" for n, e in PASSING])
def test_a_passing_failure_is_known_by_its_class_code_or_words(name: str, error: BaseException) -> None:
    row = failure_of(error)
    assert row is not None
    assert row.name == name
    assert out_of_memory(error) == (name == "memory")


def test_every_row_has_an_example() -> None:
    assert {name for name, _ in PASSING} == {row.name for row in FAILURES}


@pytest.mark.parametrize("error", LASTING, ids=[f"{type(e).__name__} {str(e)[:30]}" for e in LASTING])
def test_an_error_that_only_mentions_one_is_permanent(error: BaseException) -> None:
    assert failure_of(error) is None


def raised(body: Callable[[], None]) -> BaseException:
    try:
        body()
    except BaseException as error:
        return error
    raise AssertionError


def from_it() -> None:
    raise ValueError("wrapped") from OSError(errno.EIO, "Input/output error")


def within_it() -> None:
    try:
        raise OSError(errno.EIO, "Input/output error")
    except OSError:
        raise ValueError("wrapped")  # noqa: B904 - the context is what is tested


def instead_of_it() -> None:
    try:
        raise OSError(errno.EIO, "Input/output error")
    except OSError:
        raise ValueError("no longer about it") from None


@pytest.mark.parametrize(("body", "name"), [(from_it, "disk"), (within_it, "disk"), (instead_of_it, None)])
def test_an_error_is_known_by_those_that_it_wraps(body: Callable[[], None], name: str | None) -> None:
    row = failure_of(raised(body))
    assert (row and row.name) == name


def test_errors_that_wrap_each_other_in_a_circle_are_looked_at_once() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert failure_of(one) is None
