"""Write the shipped encoder's graph anew, for one text at a time, with the weights as they are.

    pip install onnx && python .ci/encoder.py ORIGINAL.onnx model.onnx

ORIGINAL.onnx is the file whose sha256 the model card names. What it computes stays the same but for
rounding; what changes is which kernels of onnxruntime compute it, by far the cheaper ones on a CPU:

- SkipLayerNormalization, which is scalar code, becomes Add and LayerNormalization
- QAttention becomes a quantized product, Split and MultiHeadAttention (a blocked kernel)
- MatMulInteger, Cast, Mul and the bias behind them become one DynamicQuantizeMatMul; zero points,
  which are all 0, are left out
- the mask is left out: a single text has no padding
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

HEADS, LAYERS, WIDTH, EPSILON = 12, 6, 384, 1e-12
OURS = "com.microsoft"


class Graph:
    """Nodes in order; a weight is taken over from the original when it is first used."""

    def __init__(self, original: onnx.GraphProto) -> None:
        self._original = {tensor.name: tensor for tensor in original.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}

    def add(
        self, op: str, inputs: list[str], *outputs: str, domain: str = "", **how: object
    ) -> str:
        for name in inputs:
            if name in self._original:
                self.weights[name] = self._original[name]
        self.nodes.append(helper.make_node(op, inputs, list(outputs), domain=domain, **how))
        return outputs[0]

    def product(self, x: str, name: str, output: str) -> str:
        """x . weights + bias, x quantized on the way."""
        if numpy_helper.to_array(self._original[f"{name}_w_zero_point"]).any():
            raise SystemExit(f"{name}: a zero point is not 0")
        weights = [f"{name}_w_quantized", f"{name}_w_scale", "", f"{name}_b"]
        return self.add("DynamicQuantizeMatMul", [x, *weights], output, domain=OURS)

    def normalized(self, x: str, name: str, output: str) -> str:
        how = {"axis": -1, "epsilon": EPSILON}
        return self.add("LayerNormalization", [x, f"{name}_g", f"{name}_b"], output, **how)

    def words(self) -> str:
        self.add("Shape", ["input_ids"], "length", start=1, end=2)
        self.add("Gather", ["word_q", "input_ids"], "codes", axis=0)
        self.add("Gather", ["word_scale", "input_ids"], "scales", axis=0)
        self.add("Cast", ["codes"], "numbers", to=onnx.TensorProto.FLOAT)
        self.add("Mul", ["numbers", "scales"], "words")
        self.add("Slice", ["position", "i0", "length", "axis0"], "places16")
        self.add("Cast", ["places16"], "places", to=onnx.TensorProto.FLOAT)
        self.add("Add", ["words", "places"], "placed")
        return self.normalized("placed", "emb_ln", "embedded")

    def layer(self, x: str, n: str) -> str:
        self.product(x, f"{n}_qkv", f"{n}_qkv")
        self.add("Split", [f"{n}_qkv", "thirds"], f"{n}_q", f"{n}_k", f"{n}_v", axis=2)
        asked = [f"{n}_q", f"{n}_k", f"{n}_v"]
        self.add("MultiHeadAttention", asked, f"{n}_att", domain=OURS, num_heads=HEADS)
        self.product(f"{n}_att", f"{n}_ao", f"{n}_ao")
        self.add("Add", [f"{n}_ao", x], f"{n}_sum1")
        x = self.normalized(f"{n}_sum1", f"{n}_ln1", f"{n}_ln1")
        self.product(x, f"{n}_up", f"{n}_up")
        self.add("Gelu", [f"{n}_up"], f"{n}_gelu", domain=OURS)
        self.product(f"{n}_gelu", f"{n}_dn", f"{n}_dn")
        self.add("Add", [f"{n}_dn", x], f"{n}_sum2")
        return self.normalized(f"{n}_sum2", f"{n}_ln2", f"{n}_ln2")


def rewritten(original: onnx.ModelProto) -> onnx.ModelProto:
    graph = Graph(original.graph)
    thirds = numpy_helper.from_array(np.array([WIDTH] * 3, dtype=np.int64), "thirds")
    graph.weights["thirds"] = thirds
    x = graph.words()
    for number in range(LAYERS):
        x = graph.layer(x, f"l{number}")
    graph.add("ReduceMean", [x], "mean", axes=[1], keepdims=0)
    graph.add("LpNormalization", ["mean"], "embedding", axis=1, p=2)
    made = helper.make_graph(
        graph.nodes,
        original.graph.name,
        [given for given in original.graph.input if given.name == "input_ids"],
        list(original.graph.output),
        list(graph.weights.values()),
    )
    return helper.make_model(
        made, opset_imports=original.opset_import, ir_version=original.ir_version
    )


def main() -> None:
    source, target = (Path(name) for name in sys.argv[1:])
    target.write_bytes(rewritten(onnx.load(source)).SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
