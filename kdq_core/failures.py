"""The table of failures after which another try may succeed. Importable without torch.

A row knows its failures by exception class, by error code, and, where a library raises a bare `RuntimeError` for all it
has to say, by the beginning of the text. So a message that merely mentions memory is no failure of memory. An error is
looked up with those that it wraps (`__cause__`, `__context__`, `reason` of urllib).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

ACCELERATOR = "torch.AcceleratorError"


@dataclass(frozen=True)
class Failure:
    """One kind of passing failure.

    Attributes:
        name: of the kind.
        fact: what happened, for the message.
        remedy: what to do about it.
        classes: full names of exception classes; subclasses count too.
        numbers: values of `errno` of an `OSError`.
        accelerator: values of `error_code` of a `torch.AcceleratorError`.
        texts: beginning of the text of a `RuntimeError`, as a regular expression.
    """

    name: str
    fact: str
    remedy: str
    classes: frozenset[str] = frozenset()
    numbers: frozenset[int] = frozenset()
    accelerator: frozenset[int] = frozenset()
    texts: str = r"(?!)"

    def names(self, error: BaseException) -> bool:
        """Whether `error` itself, without those that it wraps, is of this kind."""
        kinds = classes_of(error)
        if self.classes & kinds or (isinstance(error, OSError) and error.errno in self.numbers):
            return True
        torchs = ACCELERATOR in kinds
        if torchs and getattr(error, "error_code", None) in self.accelerator:
            return True
        return (torchs or type(error) is RuntimeError) and re.match(self.texts, str(error)) is not None


FAILURES = (
    Failure(
        name="memory",
        fact="the device ran out of memory",
        remedy="lower batch_size or free the device",
        classes=frozenset({"builtins.MemoryError", "torch.OutOfMemoryError"}),
        numbers=frozenset({errno.ENOMEM}),
        accelerator=frozenset({2}),
        texts=r"(CUDA|HIP|XPU|MPS backend) out of memory|(CUDA|HIP) error: out of memory"
        r"|CUDA error: CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|cuDNN error: CUDNN_STATUS_ALLOC_FAILED"
        r"|(\[enforce fail at \S+\] .*?)?DefaultCPUAllocator: (can't allocate|not enough) memory",
    ),
    Failure(
        name="device",
        fact="the device failed",
        remedy="run again; if it recurs, look for the device in the system's log",
        accelerator=frozenset({214, 220, 702, 714, 719}),
        texts=r"(CUDA|HIP) error: (uncorrectable (ECC|NVLink) error|unspecified launch failure|the launch timed out"
        r"|hardware stack error)|cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"
        r"|CUDA error: CUBLAS_STATUS_EXECUTION_FAILED",
    ),
    Failure(
        name="busy",
        fact="the device is busy",
        remedy="end the process that uses it, or choose another device",
        accelerator=frozenset({46, 802}),
        texts=r"(CUDA|HIP) error: ((all )?CUDA-capable device\S* (is/)?are busy or unavailable|system not yet init)",
    ),
    Failure(
        name="processes",
        fact="processes lost each other",
        remedy="run again; NCCL_DEBUG=INFO shows more",
        classes=frozenset({"torch.distributed.DistError", "torch.distributed.DistBackendError"}),
        texts=r"NCCL (error|Error)|\[\S*Process ?Group\S*\]? .*(timeout|Connection closed by peer)",
    ),
    Failure(
        name="loader",
        fact="a process that loads data died",
        remedy="the machine may be out of memory: lower num_workers of the DataLoader if it recurs",
        texts=r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed by signal|exited unexpectedly)",
    ),
    Failure(
        name="disk",
        fact="a disk or network drive failed",
        remedy="check the drive, then run again",
        numbers=frozenset({errno.EIO, errno.ESTALE, errno.EREMOTEIO}),
    ),
    Failure(
        name="network",
        fact="a connection failed",
        remedy="check the network, then run again",
        classes=frozenset(
            {
                "builtins.ConnectionError", "builtins.TimeoutError", "socket.gaierror", "http.client.IncompleteRead",
                "requests.exceptions.ConnectionError", "requests.exceptions.Timeout",
                "requests.exceptions.ChunkedEncodingError", "urllib3.exceptions.TimeoutError",
                "urllib3.exceptions.NewConnectionError", "urllib3.exceptions.ProtocolError",
                "urllib3.exceptions.MaxRetryError", "httpx.TransportError",
                "aiohttp.client_exceptions.ClientConnectionError", "aiohttp.client_exceptions.ClientPayloadError",
                "botocore.exceptions.ConnectionError", "botocore.exceptions.HTTPClientError",
            }
        ),
        numbers=frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}),
    ),
)  # fmt: skip
"""All passing failures; of several rows that know an error, the first counts."""

NEVER = frozenset(
    {
        "ssl.SSLCertVerificationError", "requests.exceptions.SSLError", "urllib3.exceptions.SSLError",
        "botocore.exceptions.SSLError", "aiohttp.client_exceptions.ClientSSLError",
    }
)  # fmt: skip
"""Classes that make an error permanent, whatever wraps them: no later try has another certificate."""


def failure_of(error: BaseException) -> Failure | None:
    """The row of `error`, or of an error that it wraps; `None` if another try would fail alike."""
    chain = list(wrapped(error))
    if any(NEVER & classes_of(one) for one in chain):
        return None
    return next((row for one in chain for row in FAILURES if row.names(one)), None)


def classes_of(error: BaseException) -> set[str]:
    """Full names of the class of `error` and its base classes."""
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def out_of_memory(error: BaseException) -> bool:
    """Whether less work at a time would help."""
    row = failure_of(error)
    return row is not None and row.name == "memory"


def wrapped(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and the errors that it wraps, from the outside in, each once."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, None if one.__suppress_context__ else one.__context__, getattr(one, "reason", None)]
