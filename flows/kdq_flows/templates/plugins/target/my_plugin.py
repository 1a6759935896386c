"""Target `my-plugin`: a torch.export archive with int8 weights, which PyTorch runs.

What: the weights of conv and linear layers are int8, symmetric, with one scale for each output channel. PyTorch
    computes in float. Use it with a quantizer of weights alone, such as `weight-only`.
Source: the archive is torch.export's, from its documentation.
Defaults: weights from -127 to 127.
Limits: no activation is quantized, so nothing becomes faster; the coverage says so. The evaluator `size` reads ONNX.
"""

import io

from kdq_core.api import Field, OperatorCoverage, Place, Target, TensorSpec, export_program, module_path

WHY = "its weights are int8, and PyTorch computes in float"


class MyPlugin(Target):
    """Its fields are the options of a recipe."""

    limit: int = Field(default=127, ge=1, le=127, description="largest integer of a weight")

    def resolved(self):
        """Values of options that depend on the machine; there are none."""
        return {}

    def places(self, graph, *, keep_float=()):
        """The tensors that get a quantizer."""
        found = {}
        for node, operator in layers(graph):
            weight, path = node.args[1], module_path(node)
            if weight.op != "get_attr" or f"{path}:{operator}" in keep_float:
                continue
            found[weight.name] = Place(
                name=str(weight.target), role="weight", node=weight.name, dtype="int8", qmin=-self.limit,
                qmax=self.limit, symmetric=True, axis=0, channels=int(weight.meta["val"].shape[0]), path=path,
                operator=operator, weight_only=True,
            )  # fmt: skip
        return tuple(found.values())

    def export(self, model, example, path):
        """Write a float or converted model, with a free batch size."""
        import torch

        written = io.BytesIO()
        torch.export.save(export_program(model.eval(), example), written)
        path.write_bytes(written.getvalue())

    def signature(self, path):
        """Inputs and outputs of the file; -1 is the free batch size."""
        program = loaded(path)
        nodes = {node.name: node for node in program.graph.nodes}
        names = program.graph_signature
        return tuple(spec(nodes[name]) for name in names.user_inputs), tuple(spec(nodes[n]) for n in names.user_outputs)

    def session(self, path, *, threads):
        """Load the file."""
        return Session(loaded(path).module())

    def coverage(self, path, graph, *, keep_float=()):
        """One row for each operator: int8, or float and why."""
        return tuple(
            OperatorCoverage(path=module_path(node), operator=operator, kernel="aten", int8=False, reason=WHY)
            for node, operator in layers(graph)
        )


class Session:
    """A loaded file."""

    def __init__(self, module):
        self.module = module

    def run(self, inputs):
        """Answer for one batch of arrays, with a tuple of arrays."""
        import torch

        with torch.no_grad():
            given = self.module(*(torch.from_numpy(x) for x in inputs))
        return tuple(x.numpy() for x in (given if isinstance(given, tuple | list) else (given,)))


def layers(graph):
    """The conv and linear layers of a graph, each with its type."""
    import torch

    aten = torch.ops.aten
    kinds = {aten.linear.default: "linear", aten.conv1d.default: "conv", aten.conv2d.default: "conv"}
    return [(node, kinds[node.target]) for node in graph.graph.nodes if node.target in kinds]


def loaded(path):
    """Read the archive."""
    import torch

    return torch.export.load(io.BytesIO(path.read_bytes()))


def spec(node):
    """Describe an input or output."""
    value = node.meta["val"]
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorSpec(name=node.name, dtype=dtype, shape=(-1, *map(int, value.shape[1:])))
