"""A teacher that is an ONNX file."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdq_core.errors import StageError, listing

BESIDE = "session.model_external_initializers_file_folder_path"
"""The folder in which ONNX Runtime looks for weights that are not in the file itself; by default the current one."""


class OnnxTeacher(nn.Module):
    """A model in ONNX Runtime, on the CPU. Its file is a buffer, so that it is kept where weights are kept.

    Attributes:
        tasks: names of the outputs that are tasks; none for the first output alone.
        title: what it is called in messages.
    """

    def __init__(self, content: bytes = b"", tasks: tuple[str, ...] = (), file: str = "") -> None:
        """Keep the content of a file; `file` is its name for messages."""
        super().__init__()
        self.register_buffer("content", torch.from_numpy(np.frombuffer(content, np.uint8).copy()))
        self.tasks = tasks
        self.title = f"the ONNX teacher {file!r}" if file else "the ONNX teacher"
        self._session: Any = None

    def forward(self, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """The first output of the file, or those that are tasks by name; on the device of the inputs.

        Raises:
            StageError: the file takes another number of inputs, has no such output, or ONNX Runtime refuses it.
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
            raise StageError(
                f"ONNX Runtime cannot run {self.title}: {error}; export it with a free batch size"
            ) from error
        found = [torch.from_numpy(answer).to(inputs[0].device) for answer in answers]
        return dict(zip(self.tasks, found, strict=True)) if self.tasks else found[0]

    def file(self) -> bytes:
        """The content of the file."""
        return self.content.cpu().numpy().tobytes()

    def _opened(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry(BESIDE, os.devnull)  # what is read from there is in no key and not kept
        try:
            return onnxruntime.InferenceSession(self.file(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            remedy = "name an ONNX model in 'teacher.members'"
            if "External data" in str(error):
                remedy = (
                    "its weights are in a file beside it: export it with torch.onnx.export(..., external_data=False), "
                    "or put them into one file with onnx.save(onnx.load(FILE), FILE)"
                )
            raise StageError(f"ONNX Runtime cannot read {self.title}: {str(error).rstrip('.')}; {remedy}") from error

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        self.content = torch.empty_like(state_dict[f"{prefix}content"])
        super()._load_from_state_dict(state_dict, prefix, *others)
