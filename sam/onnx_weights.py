"""The weights of a MobileSAM that was exported to ONNX, under the official state-dict keys (numpy
and onnx only).

The export renames and rewrites weights. Batch norm is folded into its convolution; the matrices of
linear layers are transposed and lose their names; small constants (factors of layer norms, tokens,
expanded position biases) are written into the graph. The names of the graph's nodes are still the
paths of the modules, and by these the weights are found again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.packages import extra

_BATCH_NORM_EPS = 1e-5
_DECODER_ROOTS = (
    "transformer",
    "output_upscaling",
    "output_hypernetworks_mlps",
    "iou_prediction_head",
)

State = dict[str, np.ndarray]


def onnx_package() -> Any:
    """The package ``onnx``.

    Raises:
        UserError: it is not installed.
    """
    return extra("onnx", "reading the exported MobileSAM", "convert")


def convert(encoder: Path, decoder: Path) -> State:
    """float32 state dict with MobileSAM's key names from the two exported graphs.

    Args:
        encoder: the image encoder, (1, 3, 1024, 1024) -> (1, 256, 64, 64).
        decoder: prompt encoder and mask decoder with all four mask tokens.

    Raises:
        UserError: a file is no such graph, or onnx is not installed.
    """
    try:
        return {**_encoder_state(_Graph(encoder)), **_decoder_state(_Graph(decoder))}
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"expected the exported MobileSAM graphs {encoder.name} and {decoder.name}, "
            f"but a weight is not where it should be: {error!r}"
        ) from error


class _Graph:
    """Constants of an ONNX graph, and its nodes with the constants that go into them."""

    def __init__(self, path: Path) -> None:
        onnx = onnx_package()
        from google.protobuf.message import DecodeError

        try:
            graph = onnx.load(str(path)).graph
        except (OSError, DecodeError) as error:
            raise UserError(f"expected an ONNX file at {path}: {error}") from error
        self.initializers: State = {
            item.name: np.array(onnx.numpy_helper.to_array(item)) for item in graph.initializer
        }
        inlined = {
            node.output[0]: np.array(onnx.numpy_helper.to_array(node.attribute[0].t))
            for node in graph.node
            if node.op_type == "Constant"
        }
        constants = {**inlined, **self.initializers}
        self.nodes: list[tuple[str, str, list[Any]]] = [
            (node.op_type, _module_path(node.name), [constants.get(name) for name in node.input])
            for node in graph.node
            if node.op_type != "Constant"
        ]

    def named(self) -> State:
        """Initializers that kept their names (anonymous ones are called ``onnx::...``)."""
        return {k: v for k, v in self.initializers.items() if not k.startswith("onnx::")}

    def of(self, op_type: str) -> list[tuple[str, list[np.ndarray]]]:
        """(module path, constant inputs) of the nodes of one kind that have a weight as input."""
        found = []
        for kind, path, inputs in self.nodes:
            weights = [value for value in inputs if value is not None and value.size > 1]
            if kind == op_type and weights:
                found.append((path, weights))
        return found


def _module_path(node_name: str) -> str:
    """``/patch_embed/seq/seq.0/c/Conv`` -> ``patch_embed.seq.0.c``: containers repeat their own
    name.
    """
    parts = node_name.strip("/").split("/")[:-1]
    repeated = [part for part, inner in zip(parts, parts[1:]) if inner.startswith(f"{part}.")]
    return ".".join(part for part in parts if part not in repeated)


def _encoder_state(graph: _Graph) -> State:
    state = graph.named()
    for path, weights in graph.of("Conv"):
        if path.endswith(".c"):
            state.update(_unfolded(path[: -len(".c")], *weights))
    for path, (weight, *_) in graph.of("MatMul"):
        state[f"{path}.weight"] = weight.T
    for path, (constant, *_) in graph.of("Add"):
        if path.endswith(".attn"):
            state[f"{path}.attention_biases"] = _collapsed(constant)
    state.update(_channel_norms(graph, r"neck\.\d+"))
    return {f"image_encoder.{key}": _plain(value) for key, value in state.items()}


def _decoder_state(graph: _Graph) -> State:
    state = {re.sub(r"^model\.", "", key): value for key, value in graph.named().items()}
    for path, (weight, *_) in graph.of("MatMul"):
        if path.startswith(_DECODER_ROOTS):
            state[f"mask_decoder.{path}.weight"] = weight.T
    norms = _channel_norms(graph, r"(mask_downscaling|output_upscaling)\.\d+")
    for key, value in norms.items():
        part = "mask_decoder" if key.startswith(_DECODER_ROOTS) else "prompt_encoder"
        state[f"{part}.{key}"] = value
    (no_mask,) = (w[0] for path, w in graph.of("Mul") if not path and w[0].shape == (1, 256, 1, 1))
    state["prompt_encoder.no_mask_embed.weight"] = no_mask.reshape(1, 256)
    (tokens,) = (w[0] for path, w in graph.of("Expand") if not path and w[0].shape == (1, 5, 256))
    state["mask_decoder.iou_token.weight"] = tokens[0, :1]
    state["mask_decoder.mask_tokens.weight"] = tokens[0, 1:]
    return {key: _plain(value) for key, value in state.items()}


def _unfolded(path: str, weight: np.ndarray, bias: np.ndarray) -> State:
    """The state of a convolution with batch norm, from a convolution into which the batch norm was
    folded. This batch norm only adds the bias.
    """
    ones = np.ones_like(bias)
    return {
        f"{path}.c.weight": weight,
        f"{path}.bn.weight": ones,
        f"{path}.bn.bias": bias,
        f"{path}.bn.running_mean": np.zeros_like(bias),
        # Batch norm divides by sqrt(running_var + eps), which is then exactly 1.
        f"{path}.bn.running_var": ones - np.float32(_BATCH_NORM_EPS),
    }


def _channel_norms(graph: _Graph, pattern: str) -> State:
    """Affine parameters of layer norms over channels, inlined as (C, 1, 1) factors and summands."""
    state = {}
    for op_type, name in (("Mul", "weight"), ("Add", "bias")):
        for path, (constant, *_) in graph.of(op_type):
            if re.fullmatch(pattern, path) and constant.shape[1:] == (1, 1):
                state[f"{path}.{name}"] = constant.reshape(-1)
    return state


def _collapsed(expanded: np.ndarray) -> np.ndarray:
    """(heads, N, N) position biases of an n x n window -> (heads, offsets), one column per |dy|,
    |dx|.

    The columns stand in the order in which an offset first occurs when all pairs of window
    positions are gone through row by row. The first position is paired with every other one before
    any other pair, so the order is that of its row.
    """
    heads, count, _ = expanded.shape
    side = int(round(count**0.5))
    ys, xs = np.divmod(np.arange(count), side)
    column = np.abs(ys[:, None] - ys) * side + np.abs(xs[:, None] - xs)
    biases = expanded[:, 0]
    if side * side != count or not np.array_equal(biases[:, column], expanded):
        raise ValueError(f"position biases {expanded.shape} do not depend on the offset alone")
    return biases


def _plain(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value, dtype=np.float32)
