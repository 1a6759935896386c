import errno
import json
import re

import pytest
from safetensors import SafetensorError

from kdq_core.errors import PluginError, StageError, StoreError, TransientError, UnforeseenError
from kdq_core.worker.main import epoch_line, named


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (PluginError("as it is"), PluginError, "as it is"),
        (ValueError("no such class"), UnforeseenError, "ValueError: no such class"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "train.csv"),
            UnforeseenError,
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


@pytest.mark.parametrize(
    ("kind", "given"),
    [(StageError, TransientError), (StoreError, TransientError), (PluginError, PluginError)],
)
def test_an_error_of_kdqs_that_wraps_a_passing_failure_passes_too(kind: type[Exception], given: type) -> None:
    error = kind("as it is")
    error.__cause__ = OSError(errno.EIO, "Input/output error")
    assert type(named(error)) is given
    assert str(named(error)) == "as it is"


def test_a_mistake_in_code_is_told_with_its_place_and_what_was_noted() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")  # raised within Python's own files
    caught.value.add_note("the distiller 'mine' raised it")
    given = named(caught.value)
    assert type(given) is UnforeseenError
    assert str(given) == (
        "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1) (in "
        f"{__file__}:{caught.traceback[0].lineno + 1}); the distiller 'mine' raised it"
    )


def test_an_epoch_is_a_line_of_the_log_with_its_time() -> None:
    line = epoch_line({"epoch": 3, "values": {"train/loss": 0.12345, "validation/top1": "NaN"}})
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d epoch 3: train/loss 0.1235, validation/top1 NaN", line)
