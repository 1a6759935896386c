"""Where OpenVINO's int8 kernels differ from those of ONNX Runtime."""

from __future__ import annotations

from torch.fx import Node

from kdq_targets.onnx_places import Finder


class OpenVinoFinder(Finder):
    """Walks a captured graph as for ONNX Runtime, but leaves recurrent layers float."""

    def _reason(self, node: Node, kind: str) -> str:
        if kind in ("lstm", "gru"):
            return f"OpenVINO has no int8 kernel for {kind}"
        return super()._reason(node, kind).replace("ONNX Runtime", "OpenVINO")
