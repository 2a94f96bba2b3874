"""The layers of diffusers' models as OpenVINO operations, by the names of their weights. Shapes stand at line ends.

A node is what an operation returns; weights stay in the precision of their file and are widened in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.graphs.runtime import openvino, ops
from pipelines.graphs.weights import Weights

Node = Any


class Layers:
    """One part of a checkpoint: `Layers(weights).conv(x, "conv_in")`. With `int8`, matrices are rounded to 8 bits."""

    def __init__(self, weights: Weights, *, int8: bool = False) -> None:
        self.weights, self._matrix = weights, _rounded if int8 else _widened

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.weights

    def constant(self, name: str, *shape: int) -> Node:
        """A weight, in `shape` if one is given."""
        values = self.weights[name]
        return _widened(values.reshape(shape) if shape else values)

    def conv(self, x: Node, name: str, *, stride: int = 1, padding: int | tuple[int, int] | None = None) -> Node:
        """[B, c, h, w] -> [B, C, h / stride, w / stride]; padding of half the kernel, or as told, before and after."""
        size = self.weights[f"{name}.weight"].shape[-1]
        before, after = padding if isinstance(padding, tuple) else (size // 2 if padding is None else padding,) * 2
        out = ops.convolution(x, self.constant(f"{name}.weight"), [stride, stride], [before] * 2, [after] * 2, [1, 1])
        return ops.add(out, self.constant(f"{name}.bias", 1, -1, 1, 1))

    def linear(self, x: Node, name: str) -> Node:
        """[..., c] -> [..., C], with a bias where there is one. A 1x1 convolution's weight will do."""
        weight = self.weights[f"{name}.weight"]
        out = ops.matmul(x, self._matrix(weight.reshape(weight.shape[:2])), False, True)
        return ops.add(out, self.constant(f"{name}.bias")) if f"{name}.bias" in self.weights else out

    def linears(self, x: Node, names: Sequence[str]) -> list[Node]:
        """What `linear` gives for each name, all with a bias or none, in one product: small ones cost more to start than to compute."""
        weights = [self.weights[f"{name}.weight"] for name in names]
        out = ops.matmul(x, self._matrix(np.concatenate(weights)), False, True)
        if f"{names[0]}.bias" in self.weights:
            out = ops.add(out, _widened(np.concatenate([self.weights[f"{name}.bias"] for name in names])))
        lengths = ops.constant(np.array([len(weight) for weight in weights], np.int64))
        return list(ops.variadic_split(out, ops.constant(np.array(-1, np.int64)), lengths).outputs())

    def group_norm(self, x: Node, name: str, groups: int, epsilon: float, *, swish: bool = False, small: bool = False) -> Node:
        """[B, C, h, w] -> the same shape. Where h * w is `small`, scale, shift and swish are applied with the channels last.

        OpenVINO does those along the innermost axis: at 8 x 8 they take a tenth of the time if that is the channels, at 64 x 64
        the transposition costs more than it gains.
        """
        weight, bias = self.constant(f"{name}.weight"), self.constant(f"{name}.bias")
        if not small:
            out = ops.group_normalization(x, weight, bias, groups, epsilon)
            return ops.swish(out) if swish else out
        flat = ops.reshape(x, ops.constant(np.array([0, groups, -1], np.int64)), True)
        flat = ops.mvn(flat, ops.constant(np.array([-1], np.int64)), True, epsilon, "inside_sqrt")
        h = ops.transpose(ops.reshape(flat, ops.shape_of(x), False), ops.constant(np.array([0, 2, 3, 1])))  # [B, h, w, C]
        h = ops.add(ops.multiply(h, weight), bias)
        return ops.transpose(ops.swish(h) if swish else h, ops.constant(np.array([0, 3, 1, 2])))

    def layer_norm(self, x: Node, name: str, epsilon: float = 1e-5) -> Node:
        """Over the last axis."""
        flat = ops.mvn(x, ops.constant(np.array([-1], np.int64)), True, epsilon, "inside_sqrt")
        return ops.add(ops.multiply(flat, self.constant(f"{name}.weight")), self.constant(f"{name}.bias"))

    def resnet(self, x: Node, name: str, groups: int, epsilon: float, *, time: Node | None = None, small: bool = False) -> Node:
        """diffusers' ResnetBlock2D: [B, c, h, w] -> [B, C, h, w]; time [B, C] is what the block is told of the timestep."""
        h = self.conv(self.group_norm(x, f"{name}.norm1", groups, epsilon, swish=True, small=small), f"{name}.conv1")
        if time is not None:
            h = ops.add(h, ops.unsqueeze(time, ops.constant(np.array([2, 3], np.int64))))
        h = self.conv(self.group_norm(h, f"{name}.norm2", groups, epsilon, swish=True, small=small), f"{name}.conv2")
        return ops.add(self.conv(x, f"{name}.conv_shortcut") if self.has(f"{name}.conv_shortcut") else x, h)

    def upsample(self, x: Node, name: str, like: Node | None = None) -> Node:
        """Nearest neighbour to twice the size, or to that of `like` [B, c, h, w], then a convolution."""
        axes = ops.constant(np.array([2, 3], np.int64))
        rule = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        if like is None:
            x = ops.interpolate(x, ops.constant(np.array([2, 2], np.float32)), shape_calculation_mode="scales", axes=axes, **rule)
        else:
            size = ops.gather(ops.shape_of(like), axes, ops.constant(np.array(0, np.int64)))
            x = ops.interpolate(x, size, shape_calculation_mode="sizes", axes=axes, **rule)
        return self.conv(x, f"{name}.conv")


def named(name: str, shape: list[int], kind: Any = openvino.Type.f32) -> Node:
    """An input of a graph; -1 is any length."""
    node = ops.parameter(openvino.PartialShape(shape), kind, name)
    node.output(0).get_tensor().set_names({name})
    return node


def _widened(values: NDArray[Any]) -> Node:
    """A constant in single precision."""
    node = ops.constant(np.ascontiguousarray(values))
    return node if values.dtype == np.float32 else ops.convert(node, "f32")


def _rounded(values: NDArray[Any]) -> Node:
    """A matrix [C, c] in 8 bits, symmetric, with a scale for each of the C outputs; OpenVINO multiplies it as it is."""
    wide = values.astype(np.float32)
    scale = np.maximum(np.abs(wide).max(axis=1, keepdims=True) / 127, np.float32(1e-30))  # [C, 1]
    whole = np.round(wide / scale).astype(np.int8)
    return ops.multiply(ops.convert(ops.constant(whole), "f32"), ops.constant(scale))


def attention(q: Node, k: Node, v: Node, heads: int, mask: Node | None = None) -> Node:
    """[B, N, C], [B, M, C], [B, M, C] -> [B, N, C]."""
    q, k, v = (split_heads(x, heads) for x in (q, k, v))  # [B, heads, N, C / heads]
    out = ops.scaled_dot_product_attention(q, k, v) if mask is None else ops.scaled_dot_product_attention(q, k, v, mask)
    return merge_heads(out)


def split_heads(x: Node, heads: int) -> Node:
    return ops.transpose(ops.reshape(x, ops.constant(np.array([0, 0, heads, -1], np.int64)), True), ops.constant(np.array([0, 2, 1, 3])))


def merge_heads(x: Node) -> Node:
    return ops.reshape(ops.transpose(x, ops.constant(np.array([0, 2, 1, 3]))), ops.constant(np.array([0, 0, -1], np.int64)), True)


def to_tokens(x: Node) -> Node:
    """[B, C, h, w] -> [B, h * w, C]."""
    flat = ops.reshape(x, ops.constant(np.array([0, 0, -1], np.int64)), True)
    return ops.transpose(flat, ops.constant(np.array([0, 2, 1])))


def from_tokens(x: Node, like: Node) -> Node:
    """[B, h * w, C] -> [B, C, h, w], with the size of `like` [B, C, h, w]."""
    return ops.reshape(ops.transpose(x, ops.constant(np.array([0, 2, 1]))), ops.shape_of(like), False)
