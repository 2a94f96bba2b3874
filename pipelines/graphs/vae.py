"""diffusers' AutoencoderKL as OpenVINO graphs: latents [B, C, h, w] -> pictures [B, 3, H, W] in -1..1, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.graphs.layers import Layers, Node, attention, from_tokens, to_tokens
from pipelines.graphs.runtime import openvino, ops
from pipelines.graphs.unet import NoGraph
from pipelines.graphs.weights import Weights
from pipelines.weight_shapes import OLD_NAMES

EPSILON = 1e-6


def check(config: Mapping[str, Any]) -> None:
    """Raises NoGraph for what is not built here, in either half: a worker that starts can draw every kind of job."""
    odd = {kind for kind in config["up_block_types"] if kind != "UpDecoderBlock2D"}
    odd |= {kind for kind in config["down_block_types"] if kind != "DownEncoderBlock2D"}
    if odd or config.get("act_fn", "silu") != "silu":
        raise NoGraph(f"the VAE has {', '.join(sorted(odd)) or config['act_fn']}, for which there is no OpenVINO graph")


def build(weights: Weights, config: Mapping[str, Any]) -> openvino.Model:
    """The graph of the decoder, with a dynamic size. Raises NoGraph for another kind of VAE."""
    check(config)
    layers, groups = Layers(weights), config.get("norm_num_groups", 32)
    z = ops.parameter(openvino.PartialShape([-1, config.get("latent_channels", 4), -1, -1]), openvino.Type.f32, "z")
    h = layers.conv(z, "post_quant_conv") if config.get("use_post_quant_conv", True) else z
    h = layers.conv(h, "decoder.conv_in")
    h = layers.resnet(h, "decoder.mid_block.resnets.0", groups, EPSILON)
    if config.get("mid_block_add_attention", True):
        h = _attention(layers, h, "decoder.mid_block.attentions.0", groups)
    h = layers.resnet(h, "decoder.mid_block.resnets.1", groups, EPSILON)
    for i in range(len(config["up_block_types"])):
        for j in range(config.get("layers_per_block", 1) + 1):
            h = layers.resnet(h, f"decoder.up_blocks.{i}.resnets.{j}", groups, EPSILON)
        if i + 1 < len(config["up_block_types"]):
            h = layers.upsample(h, f"decoder.up_blocks.{i}.upsamplers.0")
    h = layers.group_norm(h, "decoder.conv_norm_out", groups, EPSILON, swish=True)
    return openvino.Model([ops.result(layers.conv(h, "decoder.conv_out"), "out")], [z], "vae_decoder")


def build_encoder(weights: Weights, config: Mapping[str, Any]) -> openvino.Model:
    """[B, 3, H, W] -> mean and log variance [B, 2 C, h, w], with a dynamic size. Raises NoGraph for another kind of VAE."""
    check(config)
    layers, groups = Layers(weights), config.get("norm_num_groups", 32)
    x = ops.parameter(openvino.PartialShape([-1, config.get("in_channels", 3), -1, -1]), openvino.Type.f32, "x")
    h = layers.conv(x, "encoder.conv_in")
    for i in range(len(config["down_block_types"])):
        for j in range(config.get("layers_per_block", 1)):
            h = layers.resnet(h, f"encoder.down_blocks.{i}.resnets.{j}", groups, EPSILON)
        if i + 1 < len(config["down_block_types"]):
            h = layers.conv(h, f"encoder.down_blocks.{i}.downsamplers.0.conv", stride=2, padding=(0, 1))
    h = layers.resnet(h, "encoder.mid_block.resnets.0", groups, EPSILON)
    if config.get("mid_block_add_attention", True):
        h = _attention(layers, h, "encoder.mid_block.attentions.0", groups)
    h = layers.resnet(h, "encoder.mid_block.resnets.1", groups, EPSILON)
    h = layers.conv(ops.swish(layers.group_norm(h, "encoder.conv_norm_out", groups, EPSILON)), "encoder.conv_out")
    h = layers.conv(h, "quant_conv") if config.get("use_quant_conv", True) else h
    return openvino.Model([ops.result(h, "moments")], [x], "vae_encoder")


def _attention(layers: Layers, x: Node, name: str, groups: int) -> Node:
    """One head over all positions. [B, C, h, w] -> the same shape."""
    h = to_tokens(layers.group_norm(x, f"{name}.group_norm", groups, EPSILON))  # [B, N, C]
    names = {new: new if layers.has(f"{name}.{new}") else old for new, old in OLD_NAMES.items()}
    q, k, v = (layers.linear(h, f"{name}.{names[part]}") for part in ("to_q", "to_k", "to_v"))
    out = layers.linear(attention(q, k, v, 1), f"{name}.{names['to_out.0']}")
    return ops.add(from_tokens(out, x), x)
