"""The decoder as ONNX graphs of onnxruntime's fused operators, with quantized or float32 weights.

There are two graphs: `decoder_graph` from token embeddings to final hidden states, with the key-value cache
as inputs and outputs that share memory, and `head_graph` from hidden states to logits. A layer consists of
nine operators; using onnxruntime only for matrix products, with the rest in numpy, took 1.7 times as long
(tests/benchmarks/LOG.md). Float32 matrices are not copied into the graph: onnxruntime reads the arrays of
this process.

B = texts; T = tokens; V = vocabulary size; C = hidden size; I = intermediate size of the SwiGLU; H, G = query
heads, key-value heads; D = head size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.config import ModelConfig, bias_of
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.quantization import BLOCK, QuantizedMatrix
from llmcli.models.runtime import Array

_ORT = "com.microsoft"  # the domain of onnxruntime's own operators
_ACTIVATIONS: dict[str, tuple[str, dict[str, float]]] = {  # operators and their attributes
    "silu": ("QuickGelu", {"alpha": 1.0}),  # x * sigmoid(x)
    "gelu_pytorch_tanh": ("FastGelu", {}),
    "gelu": ("Gelu", {}),
}

Weight = QuantizedMatrix | Array  # in a linear layer, [outputs, inputs]


# a model and, by name, the arrays that it refers to, which must outlive it
Graph = tuple[bytes, dict[str, Array]]


def read_weight(checkpoint: Checkpoint, scheme: str | None, *names: str) -> Weight:
    """Stack matrices with the same input into one product; without a scheme in float32."""
    matrices = [matrix for name in names if (matrix := checkpoint.quantized(name, scheme)) is not None]
    if len(matrices) < 2:
        return matrices[0] if matrices else checkpoint.stacked(names)
    codes = np.concatenate([matrix.codes for matrix in matrices])
    scales = np.concatenate([matrix.scales for matrix in matrices])
    return QuantizedMatrix(codes, scales, matrices[0].columns)


def head_graph(checkpoint: Checkpoint, weight: Weight) -> Graph:
    """hidden [B, T, C] -> logits [B, T, V]"""
    graph = _GraphBuilder(checkpoint)
    outputs, inputs = weight.shape
    graph.input("hidden", ["B", "T", inputs])
    graph.multiply("hidden", weight, None, "logits")
    graph.output("logits", ["B", "T", outputs])
    return graph.finish()


def rotary_inputs(config: ModelConfig) -> list[str]:
    """Names of the tables of cosines and sines for each of ModelConfig.layer_kinds."""
    return [f"{table}{'.sliding' if kind else ''}" for kind in config.layer_kinds for table in ("cos", "sin")]


def decoder_graph(checkpoint: Checkpoint, scheme: str | None) -> Graph:
    """Embeddings x [B, T, C] -> normalized final hidden states [B, T, C]; keys and values are cached in
    place.

    `scheme` is "int8", "int4" or None. Other inputs: past [B], the positions of the last tokens; total [1],
    the largest number of tokens including the last; the `rotary_inputs` [positions, D/2]; the cache keys.i
    and values.i [B, G, capacity, D] of layer i.
    """
    config = checkpoint.config
    graph = _GraphBuilder(checkpoint, scheme)
    x = "x"
    graph.input(x, ["B", "T", config.hidden_size])
    graph.input("past", ["B"], np.int32)
    graph.input("total", [1], np.int32)
    for table in rotary_inputs(config):
        graph.input(table, ["positions", config.head_dim // 2])
    norms = config.architecture.norm_names
    normed = graph.norm(x, "model.layers.0.input_layernorm", "first")
    for i in range(config.num_hidden_layers):
        name = f"model.layers.{i}."
        last = i == config.num_hidden_layers - 1
        y = graph.attention(i, normed)
        if norms.after_attention:
            y = graph.norm(y, name + norms.after_attention, name + "self_attn.after")
        if config.use_parallel_residual:
            normed = graph.norm(x, name + norms.before_mlp, name + "mlp.normed")
            y = graph.add("Add", [y, graph.mlp(i, normed)], [name + "both"])
        else:
            normed, x = graph.add_and_norm(x, y, name + norms.before_mlp, name + "self_attn.added")
            y = graph.mlp(i, normed)
        if norms.after_mlp:
            y = graph.norm(y, name + norms.after_mlp, name + "mlp.after")
        following = "model.norm" if last else f"model.layers.{i + 1}.input_layernorm"
        normed, x = graph.add_and_norm(x, y, following, name + "mlp.added")
    graph.add("Identity", [normed], ["hidden"])
    graph.output("hidden", ["B", "T", config.hidden_size])
    return graph.finish()


class _GraphBuilder:
    """Collects the nodes, constants, inputs and outputs of an ONNX graph, and adds the parts of a decoder,
    with the weights of a checkpoint. Values are referred to by name."""

    def __init__(self, checkpoint: Checkpoint, scheme: str | None = None) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self._checkpoint = checkpoint
        self._config = checkpoint.config
        self._scheme = scheme
        self._helper = helper
        self._tensor = numpy_helper.from_array
        self._proto = TensorProto
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._arrays: dict[str, Array] = {}

    def input(self, name: str, shape: Sequence[int | str], dtype: type[np.generic] = np.float32) -> None:
        self._inputs.append(self._value_info(name, shape, dtype))

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        self._outputs.append(self._value_info(name, shape, np.float32))

    def _value_info(self, name: str, shape: Sequence[int | str], dtype: type[np.generic]) -> Any:
        return self._helper.make_tensor_value_info(
            name, self._helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
        )

    def constant(self, array: NDArray[Any]) -> str:
        name = f"constant.{len(self._constants)}"
        self._constants.append(self._tensor(np.ascontiguousarray(array), name))
        return name

    def add(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attrs: Any
    ) -> str:
        name = f"{op_type}.{len(self._nodes)}"
        self._nodes.append(
            self._helper.make_node(op_type, inputs, outputs, name=name, domain=domain, **attrs)
        )
        return outputs[0]

    def multiply(self, x: str, weight: Weight, bias: Array | None, out: str) -> str:
        """x [B, T, inputs] -> [B, T, outputs]; for a quantized weight x is quantized to int8, block by
        block."""
        if not isinstance(weight, QuantizedMatrix):
            product = out if bias is None else f"{out}.product"
            name = f"array.{len(self._arrays)}"
            kind = self._proto
            self._arrays[name] = np.ascontiguousarray(weight)
            tensor = kind(name=name, data_type=kind.FLOAT, dims=weight.shape, data_location=kind.EXTERNAL)
            tensor.external_data.add(key="location", value="memory")  # required but unused
            self._constants.append(tensor)
            self.add("FusedMatMul", [x, name], [product], _ORT, transB=1)
            return product if bias is None else self.add("Add", [product, self.constant(bias)], [out])
        inputs = [x, self.constant(weight.codes), self.constant(weight.scales.astype(np.float32))]
        if bias is not None:
            inputs += ["", "", self.constant(bias)]
        return self.add(
            "MatMulNBits",
            inputs,
            [out],
            _ORT,
            K=weight.columns,
            N=len(weight.codes),
            bits=weight.bits,
            block_size=BLOCK,
            accuracy_level=4,  # multiply in int8
        )

    def finish(self) -> Graph:
        """Serialize the model. Raises LLMError if it exceeds protobuf's limit of 2 GB."""
        graph = self._helper.make_graph(self._nodes, "step", self._inputs, self._outputs, self._constants)
        versions = [self._helper.make_opsetid("", 17), self._helper.make_opsetid(_ORT, 1)]
        model = self._helper.make_model(graph, opset_imports=versions, ir_version=9)
        try:
            return model.SerializeToString(), self._arrays
        except ValueError as error:
            problem = (
                "quantized weights of over 2 GB do not run in onnxruntime; run the model without `quantize`"
            )
            raise LLMError(problem) from error

    # ---- parts of a decoder

    def attention(self, layer: int, x: str) -> str:
        """Normalized x -> the attention output of a layer, [B, T, C]."""
        config = self._config
        H = config.num_attention_heads
        G = config.num_key_value_heads
        D = config.head_dim
        name = f"model.layers.{layer}.self_attn."
        qkv = self._linear(x, [f"{name}{kind}_proj.weight" for kind in "qkv"], name)
        projections = [qkv, "", ""]  # the operator takes all three as one input
        if config.architecture.qk_norm:
            projections = [f"{name}{kind}" for kind in "qkv"]
            sizes = self.constant(np.array([H * D, G * D, G * D], np.int64))
            self.add("Split", [qkv, sizes], projections, axis=-1)
            for kind, heads in (("q", H), ("k", G)):
                per_head = self.constant(np.array([0, -1, heads, D], np.int64))
                flat = self.constant(np.array([0, -1, heads * D], np.int64))
                split = self.add("Reshape", [f"{name}{kind}", per_head], [f"{name}{kind}.heads"])
                normed = self.norm(split, f"{name}{kind}_norm", f"{name}{kind}.normed")
                projections["qk".index(kind)] = self.add("Reshape", [normed, flat], [f"{name}{kind}.flat"])
        caches = [f"{part}.{layer}" for part in ("keys", "values")]
        for cache in caches:
            self.input(cache, ["B", G, "capacity", D])
            self.output(f"{cache}.now", ["B", G, "capacity", D])
        is_sliding = config.is_sliding(layer)
        tables = rotary_inputs(config)[2 * is_sliding :][:2] if config.is_rotary(layer) else ()
        y = self.add(
            "GroupQueryAttention",
            [*projections, *caches, "past", "total", *tables],
            [f"{name}y", *(f"{cache}.now" for cache in caches)],
            _ORT,
            num_heads=H,
            kv_num_heads=G,
            do_rotary=int(config.is_rotary(layer)),
            scale=config.attention_scale,
            local_window_size=config.sliding_window if is_sliding else -1,
        )
        return self._linear(y, [name + "o_proj.weight"], name + "o")

    def mlp(self, layer: int, x: str) -> str:
        """Normalized x -> the MLP output of a layer, [B, T, C]."""
        name = f"model.layers.{layer}.mlp."
        *inputs, down = self._config.mlp_names(layer)[0]
        projections = [name + "gate", name + "up"][: len(inputs)]
        joined = self._linear(x, inputs, name + "gate_up")
        sizes = self.constant(np.array([self._config.intermediate_size] * len(inputs), np.int64))
        self.add("Split", [joined, sizes], projections, axis=-1)
        op_type, attributes = _ACTIVATIONS[self._config.hidden_act]
        inner = self.add(op_type, projections[:1], [name + "activated"], _ORT, **attributes)
        if len(inputs) > 1:
            inner = self.add("Mul", [inner, name + "up"], [name + "inner"])
        return self._linear(inner, [down], name + "down")

    def norm(self, x: str, name: str, out: str) -> str:
        """The norm of this name, without ".weight"."""
        is_layer_norm = self._config.architecture.layer_norm
        kind = "LayerNormalization" if is_layer_norm else "SimplifiedLayerNormalization"
        eps = self._config.rms_norm_eps
        return self.add(kind, [x, *self._norm_weights(name)], [out], axis=-1, epsilon=eps)

    def add_and_norm(self, x: str, y: str, norm: str, name: str) -> tuple[str, str]:
        """(the norm of x + y, x + y)"""
        outputs = [f"{name}.normed", "", "", f"{name}.sum"]
        is_layer_norm = self._config.architecture.layer_norm
        kind = "SkipLayerNormalization" if is_layer_norm else "SkipSimplifiedLayerNormalization"
        inputs = [x, y, *self._norm_weights(norm)]
        self.add(kind, inputs, outputs, _ORT, epsilon=self._config.rms_norm_eps)
        return outputs[0], outputs[3]

    def _norm_weights(self, name: str) -> list[str]:
        """Add the gain of a norm, and its bias if it is a LayerNorm."""
        kinds = ("weight", "bias") if self._config.architecture.layer_norm else ("weight",)
        return [self.constant(self._checkpoint.tensors[f"{name}.{kind}"]) for kind in kinds]

    def _linear(self, x: str, names: Sequence[str], out: str) -> str:
        """Multiply by matrices with the same input, and add their biases if they have any."""
        biases = [bias_of(name) for name in names]
        bias = self._checkpoint.stacked(biases) if biases[0] in self._config.tensor_shapes() else None
        return self.multiply(x, read_weight(self._checkpoint, self._scheme, *names), bias, out)
