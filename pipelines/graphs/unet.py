"""diffusers' UNet2DConditionModel, as Stable Diffusion 1.x and 2.x use it, as an OpenVINO graph.

Inputs: x [R, C, h, w]; time [R, c0], the sinusoidal embedding, which is made outside because in bfloat16 it would lose the timestep;
context [R, L, E]; pag and seg [R, 1, 1], 1.0 for the rows whose self-attention in the mid block is disturbed (`pipelines.perturbation`).
Output: [R, C, h, w]. `build_remember` has a second one, deep [R, C', h, w], what enters the outermost of the blocks that go up;
`build_recall` is the outermost level alone, with deep as an input and without pag and seg (DeepCache, arXiv 2312.00858).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.graphs.layers import Layers, Node, attention, from_tokens, named, to_tokens
from pipelines.graphs.runtime import openvino, ops
from pipelines.graphs.weights import Weights
from pipelines.weight_shapes import UNET_BLOCKS, USUAL, unet_shapes

Config = Mapping[str, Any]

# What this graph has no operation for, and the value that asks for none.
PLAIN = {
    "act_fn": "silu", "addition_embed_type": None, "center_input_sample": False, "class_embed_type": None, "conv_in_kernel": 3,
    "conv_out_kernel": 3, "dual_cross_attention": False, "encoder_hid_dim_type": None, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None, "time_embedding_act_fn": None, "time_embedding_type": "positional", "timestep_post_act": None,
    "attention_type": "default", "cross_attention_norm": None, "mid_block_scale_factor": 1,
}  # fmt: skip
ONE = ("layers_per_block", "cross_attention_dim")  # for all levels
DEPTHS = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")  # of a level, the same in each of its layers


class NoGraph(ValueError):
    """The model has layers that are not built here; the message names them."""


def check(config: Config) -> None:
    """Raises NoGraph for what is not built here."""
    odd = {name for name, plain in PLAIN.items() if config.get(name, plain) != plain}
    odd |= {name for name, usual in USUAL.items() if config.get(name, usual[0]) not in usual}
    odd |= set() if config.get("norm_num_groups", 32) else {"norm_num_groups"}
    odd |= {name for name in ONE if isinstance(config.get(name), list)} | {name for name in DEPTHS if _nested(config.get(name))}
    odd |= {kind for kind in (*config["down_block_types"], *config["up_block_types"]) if kind not in UNET_BLOCKS}
    if odd:
        raise NoGraph(f"the U-Net has {', '.join(sorted(odd))}, for which there is no OpenVINO graph")


def _nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(inner, list) for inner in value)


def time_embedding(timestep: NDArray[np.float32], config: Config) -> NDArray[np.float32]:
    """[R] -> [R, c0]: diffusers' get_timestep_embedding, in single precision."""
    half = config["block_out_channels"][0] // 2
    angles = timestep.astype(np.float32)[:, None] * _frequencies(half, config.get("freq_shift", 0))  # [R, half]
    waves = [np.sin(angles), np.cos(angles)]
    told = np.concatenate(waves[::-1] if config.get("flip_sin_to_cos", True) else waves, axis=1)
    return np.pad(told, ((0, 0), (0, config["block_out_channels"][0] % 2)))


@lru_cache
def _frequencies(half: int, shift: float) -> NDArray[np.float32]:
    exponent = -math.log(10000) * np.arange(half, dtype=np.float32) / np.float32(half - shift)
    frequencies: NDArray[np.float32] = np.exp(exponent, dtype=np.float32)
    return frequencies


def build(weights: Weights, config: Config, *, int8: bool = False) -> openvino.Model:
    """The graph, with dynamic rows, sizes and prompt lengths; `int8` rounds the weights of linear layers. Raises NoGraph."""
    check(config)
    return _Unet(Layers(weights, int8=int8), config).model()


def build_remember(weights: Weights, config: Config, *, int8: bool = False) -> openvino.Model:
    """The same, which also says what its deep layers said."""
    check(config)
    return _Unet(Layers(weights, int8=int8), config).model(says_deep=True)


def build_recall(weights: Weights, config: Config, *, int8: bool = False) -> openvino.Model:
    """The outermost level over what the deep layers said."""
    check(config)
    return _Unet(Layers(weights, int8=int8), config, outermost=True).outermost()


class _Unet:
    def __init__(self, layers: Layers, config: Config, *, outermost: bool = False) -> None:
        self._layers, self._config = layers, config
        self._groups, self._epsilon = config.get("norm_num_groups", 32), config.get("norm_eps", 1e-5)
        levels = len(config["block_out_channels"])
        self._names = sorted(name for name, _ in unet_shapes(config) or ())
        heads = config.get("attention_head_dim", 8)  # diffusers' own misnomer
        self._heads = list(heads) if isinstance(heads, list | tuple) else [heads] * levels
        depth = config.get("transformer_layers_per_block", 1)
        self._layers_per_block = config.get("layers_per_block", 2)
        self._depth = list(depth) if isinstance(depth, list | tuple) else [depth] * levels
        first, width = config["block_out_channels"][0], config.get("cross_attention_dim", 1280)
        self._x = named("x", [-1, config.get("in_channels", 4), -1, -1])
        self._sines = named("time", [-1, first])
        self._context = named("context", [-1, -1, width])
        self._pag, self._seg = named("pag", [-1, 1, 1]), named("seg", [-1, 1, 1])
        self._levels = range(1) if outermost else range(levels)
        told = layers.linear(ops.swish(layers.linear(self._sines, "time_embedding.linear_1")), "time_embedding.linear_2")
        self._time = self._told(ops.swish(told), ".time_emb_proj")  # of [R, C]
        self._keys, self._values = (self._told(self._context, f".attn2.{part}") for part in ("to_k", "to_v"))  # of [R, L, C]

    def model(self, *, says_deep: bool = False) -> openvino.Model:
        skips = self._down(self._layers.conv(self._x, "conv_in"))
        *inner, outer = range(len(self._levels))
        deep = self._up(self._mid(skips[-1]), skips, inner)
        out = self._out(self._up(deep, skips, [outer]))
        said = [ops.result(deep, "deep")] if says_deep else []
        return openvino.Model([out, *said], [self._x, self._sines, self._context, self._pag, self._seg], "unet")

    def outermost(self) -> openvino.Model:
        channels = self._config["block_out_channels"]
        deep = named("deep", [-1, channels[:2][-1], -1, -1])
        skips = self._down(self._layers.conv(self._x, "conv_in"))
        out = self._out(self._up(deep, skips, [len(channels) - 1]))
        return openvino.Model([out], [self._x, self._sines, self._context, deep], "unet_recall")

    def _out(self, h: Node) -> Node:
        h = self._layers.group_norm(h, "conv_norm_out", self._groups, self._epsilon, swish=True, small=self._small(0))
        return ops.result(self._layers.conv(h, "conv_out"), "out")

    def _told(self, x: Node, suffix: str) -> dict[str, Node]:
        """What every block makes of the timestep or of the prompt by its own linear layer, by the block's name."""
        ending = f"{suffix}.weight"
        blocks = [name.removesuffix(ending) for name in self._names if name.endswith(ending) and self._has(name)]
        return dict(zip(blocks, self._layers.linears(x, [block + suffix for block in blocks]), strict=True)) if blocks else {}

    def _has(self, block: str) -> bool:
        """Whether this graph has that block: all of them, or those of the outermost level."""
        last = len(self._config["up_block_types"]) - 1
        return len(self._levels) > last or block.startswith(("down_blocks.0.", f"up_blocks.{last}."))

    def _small(self, level: int) -> bool:
        """Whether latents of the usual size have at most 16 x 16 places at this level."""
        size = self._config.get("sample_size") or 64
        return (max(size) if isinstance(size, list | tuple) else int(size)) >> level <= 16

    def _down(self, h: Node) -> list[Node]:
        """The skip connections, shallowest first; of one level alone without the step to the next."""
        skips = [h]
        for i in self._levels:
            kind = self._config["down_block_types"][i]
            for j in range(self._layers_per_block):
                h = self._resnet(h, f"down_blocks.{i}.resnets.{j}", i)
                if UNET_BLOCKS[kind]:
                    h = self._transformer(h, f"down_blocks.{i}.attentions.{j}", i, self._depth[i])
                skips.append(h)
            if i + 1 in self._levels:
                padding = 1 if self._config.get("downsample_padding", 1) else (0, 1)  # without one, diffusers pads behind
                h = self._layers.conv(h, f"down_blocks.{i}.downsamplers.0.conv", stride=2, padding=padding)
                skips.append(h)
        return skips

    def _mid(self, h: Node) -> Node:
        deepest = len(self._heads) - 1
        h = self._resnet(h, "mid_block.resnets.0", deepest)
        h = self._transformer(h, "mid_block.attentions.0", deepest, self._depth[-1], disturbed=True)
        return self._resnet(h, "mid_block.resnets.1", deepest)

    def _up(self, h: Node, skips: list[Node], blocks: Iterable[int]) -> Node:
        """Some of the blocks that go up; they take their skip connections off the list."""
        depths = self._config.get("reverse_transformer_layers_per_block") or self._depth[::-1]
        for i in blocks:
            level = len(depths) - 1 - i
            for j in range(self._layers_per_block + 1):
                h = self._resnet(ops.concat([h, skips.pop()], 1), f"up_blocks.{i}.resnets.{j}", level)
                if UNET_BLOCKS[self._config["up_block_types"][i]]:
                    h = self._transformer(h, f"up_blocks.{i}.attentions.{j}", level, depths[i])
            if level:
                h = self._layers.upsample(h, f"up_blocks.{i}.upsamplers.0", like=skips[-1])
        return h

    def _resnet(self, x: Node, name: str, level: int) -> Node:
        return self._layers.resnet(x, name, self._groups, self._epsilon, time=self._time.get(name), small=self._small(level))

    def _transformer(self, x: Node, name: str, level: int, depth: int, *, disturbed: bool = False) -> Node:
        """diffusers' Transformer2DModel. [R, C, h, w] -> the same shape."""
        layers, linear = self._layers, self._config.get("use_linear_projection", False)
        h = layers.group_norm(x, f"{name}.norm", self._groups, 1e-6, small=self._small(level))
        h = layers.linear(to_tokens(h), f"{name}.proj_in") if linear else to_tokens(layers.conv(h, f"{name}.proj_in"))  # [R, N, C]
        for k in range(depth):
            h = self._block(h, f"{name}.transformer_blocks.{k}", self._heads[level], disturbed=disturbed)
        if linear:
            return ops.add(from_tokens(layers.linear(h, f"{name}.proj_out"), x), x)
        return ops.add(layers.conv(from_tokens(h, x), f"{name}.proj_out"), x)

    def _block(self, h: Node, name: str, heads: int, *, disturbed: bool) -> Node:
        """diffusers' BasicTransformerBlock: self-attention, cross-attention, GEGLU. [R, N, C] -> [R, N, C]."""
        layers = self._layers
        own = layers.layer_norm(h, f"{name}.norm1")
        h = ops.add(h, self._attend_self(own, f"{name}.attn1", heads, disturbed=disturbed))
        query = layers.linear(layers.layer_norm(h, f"{name}.norm2"), f"{name}.attn2.to_q")
        seen = attention(query, self._keys[name], self._values[name], heads)
        h = ops.add(h, layers.linear(seen, f"{name}.attn2.to_out.0"))
        both = layers.linear(layers.layer_norm(h, f"{name}.norm3"), f"{name}.ff.net.0.proj")  # [R, N, 8 C]
        value, gate = ops.split(both, ops.constant(np.array(-1, np.int64)), 2).outputs()
        return ops.add(h, layers.linear(ops.multiply(value, ops.gelu(gate, "erf")), f"{name}.ff.net.2"))

    def _attend_self(self, x: Node, name: str, heads: int, *, disturbed: bool) -> Node:
        layers = self._layers
        query, key, value = layers.linears(x, [f"{name}.{part}" for part in ("to_q", "to_k", "to_v")])
        if disturbed:
            mean = ops.reduce_mean(query, ops.constant(np.array([1], np.int64)), True)  # [R, 1, C]
            query = ops.select(ops.greater(self._seg, ops.constant(np.float32(0))), mean, query)
        out = attention(query, key, value, heads)
        if disturbed:
            out = ops.select(ops.greater(self._pag, ops.constant(np.float32(0))), value, out)
        return layers.linear(out, f"{name}.to_out.0")
