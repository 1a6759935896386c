"""A teacher that is an ONNX file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdq_core.errors import StageError, listing

BESIDE = "session.model_external_initializers_file_folder_path"
"""Names the folder where ONNX Runtime looks for weights outside the file; by default the current folder."""
BESIDE_IT = (
    "has its weights in a file beside it, which is not read; export it with torch.onnx.export(..., "
    "external_data=False), or put them into one file with onnx.save(onnx.load(FILE), FILE)"
)


class OnnxTeacher(nn.Module):
    """A model in ONNX Runtime, on the CPU. Its file is a buffer, so that it is saved with the weights.

    Attributes:
        tasks: names of the outputs that are tasks; empty to use only the first output.
        title: the teacher's name in messages.
    """

    def __init__(self, content: bytes = b"", tasks: tuple[str, ...] = (), file: str = "") -> None:
        """Keep the content of a file; `file` is its name for messages."""
        super().__init__()
        self.register_buffer("content", torch.from_numpy(np.frombuffer(content, np.uint8).copy()))
        self.tasks = tasks
        self.title = f"the ONNX teacher {file!r}" if file else "the ONNX teacher"
        self._session: Any = None

    def forward(self, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Give the first output of the file, or its tasks by name, on the device of the inputs.

        Raises:
            StageError: the file takes other inputs, lacks an output in `tasks`, or ONNX Runtime cannot run it.
        """
        session = self._session = self._session or self._opened()
        names = [given.name for given in session.get_inputs()]
        if len(names) != len(inputs):
            raise StageError(
                f"{self.title} takes {len(names)} inputs ({', '.join(names)}), the workload gives {len(inputs)}"
            )
        outputs = [given.name for given in session.get_outputs()]
        strange = next((name for name in self.tasks if name not in outputs), None)
        if strange is not None:
            raise StageError(
                f"{self.title} has no output {strange!r} ('tasks' in 'teacher.members'); it has {listing(outputs)}"
            )
        try:
            fed = {name: x.detach().cpu().numpy() for name, x in zip(names, inputs, strict=True)}
            answers = session.run(list(self.tasks) or outputs[:1], fed)
        except Exception as error:
            raise StageError(self._refused(session.get_inputs(), inputs, error)) from error
        found = [torch.from_numpy(answer).to(inputs[0].device) for answer in answers]
        return dict(zip(self.tasks, found, strict=True)) if self.tasks else found[0]

    def check(self) -> None:
        """Check that ONNX Runtime can open the file.

        Raises:
            StageError: ONNX Runtime cannot read the file, or the file takes only one batch size.
        """
        self._session = self._session or self._opened()

    def __getstate__(self) -> dict[str, Any]:
        """Copy all but the session; a copy opens its own."""
        return {**self.__dict__, "_session": None}

    def file(self) -> bytes:
        """Give the content of the file."""
        return self.content.cpu().numpy().tobytes()

    def _opened(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry(BESIDE, os.devnull)  # weights read from there would be in no key and not saved
        try:
            session = onnxruntime.InferenceSession(self.file(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            if "External data" in str(error):
                raise StageError(f"{self.title} {BESIDE_IT}") from error
            remedy = "name an ONNX model in 'teacher.members'"
            if "NOT_IMPLEMENTED" in str(error):
                remedy = "it has no such operator for that type of number, as often for float64: export it in float32"
            raise StageError(f"ONNX Runtime cannot read {self.title}: {_line(error)}; {remedy}") from error
        fixed = next((x for x in session.get_inputs() if x.shape and isinstance(x.shape[0], int)), None)
        if fixed is not None:
            raise StageError(
                f"{self.title} was exported for batches of {fixed.shape[0]} alone: its input {fixed.name!r} has the "
                f"shape {_shape(fixed.shape)}; export it with a free batch size, such as torch.onnx.export(..., "
                "dynamic_shapes=({0: torch.export.Dim('batch')},))"
            )
        return session

    def _refused(self, declared: Sequence[Any], inputs: Sequence[Tensor], error: Exception) -> str:
        """Word the error if ONNX Runtime does not run the file on `inputs`."""
        for own, given in zip(declared, inputs, strict=True):
            sizes = zip(own.shape, given.shape, strict=False)
            if len(own.shape) != given.ndim or any(isinstance(a, int) and a != b for a, b in sizes):
                return (
                    f"{self.title} takes {own.name!r} of the shape {_shape(own.shape)}, the workload gives "
                    f"{list(given.shape)}; name a model for what the workload gives, or the inputs that this one reads "
                    "as 'inputs' in 'teacher.members'"
                )
        remedy = "if it works for one size of batch alone, export it with a free one"
        if "input data type" in str(error):
            remedy = "export it for the type of number that the workload gives, or let the workload give the model's"
        return f"ONNX Runtime cannot run {self.title}: {_line(error)}; {remedy}"

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        self.content = torch.empty_like(state_dict[f"{prefix}content"])
        super()._load_from_state_dict(state_dict, prefix, *others)


def _line(error: Exception) -> str:
    """Give ONNX Runtime's message as one line without a full stop, to be continued."""
    return " ".join(str(error).split()).rstrip(".")


def _shape(sizes: Sequence[int | str | None]) -> str:
    """Format a declared shape, with `?` for a free axis without a name."""
    return f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"
