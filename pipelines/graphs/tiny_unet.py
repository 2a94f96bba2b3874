"""TinyUNet (`pipelines.tiny_unet`) as an OpenVINO graph: state [B, 12, h, w], low [B, 3, h, w], time [B, 32] -> [B, 12, h, w]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.graphs.layers import Layers, Node, named
from pipelines.graphs.runtime import openvino, ops
from pipelines.graphs.weights import Weights
from pipelines.superres import FREQUENCIES


def build(weights: Weights, config: Mapping[str, Any]) -> openvino.Model:
    """With a dynamic size; h and w even."""
    layers, (before, deep, after) = Layers(weights), config["shape"]["blocks"]
    state, low = named("state", [-1, 12, -1, -1]), named("low", [-1, 3, -1, -1])
    time = named("time", [-1, 2 * FREQUENCIES])
    one, two = (ops.constant(np.array(v, np.float32)) for v in (1, 2))
    x = layers.conv(ops.concat([state, ops.subtract(ops.multiply(low, two), one)], 1), "enter")
    for i in range(before):
        x = _block(layers, x, time, f"before.{i}")
    if config["shape"]["deep"]:
        y = layers.conv(x, "down", stride=2, padding=0)
        for i in range(deep):
            y = _block(layers, y, time, f"deep.{i}")
        up = ops.convolution_backprop_data(y, layers.constant("up.weight"), [2, 2])
        x = ops.add(x, ops.add(up, layers.constant("up.bias", 1, -1, 1, 1)))
    for i in range(after):
        x = _block(layers, x, time, f"after.{i}")
    return openvino.Model([ops.result(layers.conv(x, "leave"), "out")], [state, low, time], "superres")


def _block(layers: Layers, x: Node, time: Node, name: str) -> Node:
    told = ops.unsqueeze(layers.linear(time, f"{name}.time"), ops.constant(np.array([2, 3], np.int64)))
    return ops.add(x, layers.conv(ops.relu(ops.add(layers.conv(x, f"{name}.first"), told)), f"{name}.second"))
