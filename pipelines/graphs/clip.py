"""transformers' CLIPTextModel as an OpenVINO graph: token ids [1, L], the layer counted from the end [1], and vectors [1, L, E] that stand
for the tokens that are `learned` [1, L, 1] -> its states [1, L, E] after the last norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.graphs.layers import Layers, Node, attention, named
from pipelines.graphs.runtime import openvino, ops
from pipelines.graphs.unet import NoGraph
from pipelines.graphs.weights import Weights

ACTIVATIONS = ("quick_gelu", "gelu")


def build(weights: Weights, config: Mapping[str, Any]) -> openvino.Model:
    """The graph, with a dynamic length. Raises NoGraph for another kind of encoder."""
    act, heads, epsilon = config.get("hidden_act", "quick_gelu"), config.get("num_attention_heads", 8), config.get("layer_norm_eps", 1e-5)
    if act not in ACTIVATIONS or config.get("use_attention_mask", False):
        raise NoGraph(
            f"the text encoder has {act if act not in ACTIVATIONS else 'use_attention_mask'}, for which there is no OpenVINO graph"
        )
    layers, old = Layers(weights), "text_model." if "text_model.final_layer_norm.weight" in weights else ""
    ids = named("ids", [1, -1], openvino.Type.i32)
    zero = ops.constant(np.array(0, np.int64))
    length = ops.gather(ops.shape_of(ids), ops.constant(np.array(1, np.int64)), zero)
    places = ops.range(zero, length, ops.constant(np.array(1, np.int64)), output_type="i64")  # [L]
    tokens = ops.gather(layers.constant(f"{old}embeddings.token_embedding.weight"), ids, zero)  # [1, L, E]
    vectors, learned = named("vectors", [1, -1, config.get("hidden_size", 512)]), named("learned", [1, -1, 1], openvino.Type.boolean)
    tokens = ops.select(learned, vectors, tokens)
    h = ops.add(tokens, ops.gather(layers.constant(f"{old}embeddings.position_embedding.weight"), places, zero))
    later = ops.greater(ops.unsqueeze(places, zero), ops.unsqueeze(places, ops.constant(np.array(1, np.int64))))  # [L, L]
    mask = ops.select(later, ops.constant(np.float32(-1e9)), ops.constant(np.float32(0)))
    each = []
    for i in range(config.get("num_hidden_layers", 12)):
        h = _layer(layers, h, f"{old}encoder.layers.{i}", heads, epsilon, act, mask)
        each.append(h)
    skip = named("skip", [1], openvino.Type.i32)
    wanted = ops.subtract(ops.constant(np.array([len(each)], np.int32)), skip)
    out = layers.layer_norm(ops.gather(ops.concat(each, 0), wanted, zero), f"{old}final_layer_norm", epsilon)
    return openvino.Model([ops.result(out, "states")], [ids, skip, vectors, learned], "text_encoder")


def _layer(layers: Layers, h: Node, name: str, heads: int, epsilon: float, act: str, mask: Node) -> Node:
    """Pre-norm attention over what came before, then the perceptron. [1, L, E] -> [1, L, E]."""
    x = layers.layer_norm(h, f"{name}.layer_norm1", epsilon)
    q, k, v = (layers.linear(x, f"{name}.self_attn.{part}_proj") for part in "qkv")
    h = ops.add(h, layers.linear(attention(q, k, v, heads, mask), f"{name}.self_attn.out_proj"))
    x = layers.linear(layers.layer_norm(h, f"{name}.layer_norm2", epsilon), f"{name}.mlp.fc1")
    x = ops.gelu(x, "erf") if act == "gelu" else ops.multiply(x, ops.sigmoid(ops.multiply(x, ops.constant(np.float32(1.702)))))
    return ops.add(h, layers.linear(x, f"{name}.mlp.fc2"))
