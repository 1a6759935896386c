import errno

import pytest
from safetensors import SafetensorError

from kdq_core.errors import PluginError, StageError, StoreError, TransientError
from kdq_core.worker import named


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (PluginError("as it is"), PluginError, "as it is"),
        (ValueError("no such class"), StageError, "ValueError: no such class"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "train.csv"),
            StageError,
            "FileNotFoundError: [Errno 2] No such file or directory: 'train.csv'",
        ),
        (
            ConnectionRefusedError("refused"),
            TransientError,
            "a connection failed: ConnectionRefusedError: refused; check the network, then run again",
        ),
        (
            RuntimeError("CUDA out of memory"),
            TransientError,
            "the device ran out of memory: RuntimeError: CUDA out of memory; lower batch_size or free the device",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            StoreError,
            "the disk is full; free some space or set KDQ_HOME to a larger disk, then run again",
        ),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            StoreError,
            "the disk is full; free some space or set KDQ_HOME to a larger disk, then run again",
        ),
    ],
)
def test_what_a_stage_raises_gets_a_name_and_a_remedy(error: Exception, kind: type[Exception], text: str) -> None:
    given = named(error)
    assert type(given) is kind
    assert str(given) == text
