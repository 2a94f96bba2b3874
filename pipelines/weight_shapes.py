"""The tensors that a config describes, by name and shape: those of diffusers' U-Nets and VAEs and of transformers' CLIP. No torch.

What a checkpoint's files say of themselves is compared with this before anything is loaded: the libraries would fill what is missing with
random numbers, or end in the middle of building a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipelines.checkpoint_error import CheckpointError
from pipelines.superres import FREQUENCIES
from pipelines.weight_files import Tensor

Config = Mapping[str, Any]
Shapes = Iterator[tuple[str, tuple[int, ...]]]

OUT, MOST = 12, 4096  # channels of what doubles pictures: four pixels of three colours; the most of its others
FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # of VAEs before diffusers 0.18
UNET_BLOCKS = {"DownBlock2D": False, "CrossAttnDownBlock2D": True, "UpBlock2D": False, "CrossAttnUpBlock2D": True}  # with attention?
VAE_BLOCKS = ("DownEncoderBlock2D", "UpDecoderBlock2D")
# Values without which a U-Net has other tensors than those below; what a config does not say has the first.
USUAL: Mapping[str, tuple[Any, ...]] = {
    "addition_embed_type": (None, "text_time"), "attention_type": ("default",), "class_embed_type": (None,),
    "cross_attention_norm": (None,), "dual_cross_attention": (False,), "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,),
    "num_class_embeds": (None,), "mid_block_only_cross_attention": (None, False), "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,), "resnet_time_scale_shift": ("default",), "time_embedding_type": ("positional",),
}  # fmt: skip


def check_weights(part: str, wanted: Iterable[tuple[str, tuple[int, ...]]], found: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError for a tensor that is missing, of another shape, or holds no fractions. More than what is wanted does not
    matter."""
    for name, shape in wanted:
        tensor = found.get(name) or found.get(f"text_model.{name}") or found.get(_old(name))
        if tensor is None:
            raise CheckpointError(f"{part}: {name} is missing, which its config describes", "weights_misfit")
        if tensor.shape != shape:
            has, should = (" x ".join(map(str, numbers)) or "one number" for numbers in (tensor.shape, shape))
            raise CheckpointError(f"{part}: {name} is {has}; its config describes {should}", "weights_misfit")
        if tensor.dtype not in FLOATS:
            kinds = ", ".join(sorted(FLOATS))
            raise CheckpointError(f"{part}: {name} holds {tensor.dtype}; weights are fractions: {kinds}", "weights_misfit")


def _old(name: str) -> str:
    layer, _, last = name.rpartition(".")
    for new, old in OLD_NAMES.items():
        if layer.endswith(f".attentions.0.{new}"):
            return f"{layer.removesuffix(new)}{old}.{last}"
    return ""


def unet_shapes(config: Config) -> Shapes | None:
    """Of a UNet2DConditionModel; None for one with layers that are not known here. Raises ValueError for a config that contradicts itself
    where it is asked for the shapes, too.
    """
    plain = all(config.get(name, usual[0]) in usual for name, usual in USUAL.items()) and config.get("norm_num_groups", 32)
    if not plain or not {*config["down_block_types"], *config["up_block_types"]} <= UNET_BLOCKS.keys():
        return None
    return _Unet(config).shapes()


class _Unet:
    def __init__(self, config: Config) -> None:
        self._config, self._widths, self._groups = config, config["block_out_channels"], config.get("norm_num_groups", 32)
        self._levels = len(self._widths)
        self._down, self._up = config["down_block_types"], config["up_block_types"]
        if not len(self._down) == len(self._up) == self._levels:
            raise ValueError("the U-Net has other numbers of blocks that go down, blocks that go up and widths")
        if config.get("num_attention_heads"):
            raise ValueError("the U-Net says num_attention_heads, which diffusers does not take: the heads are its attention_head_dim")
        self._kernels = config.get("conv_in_kernel", 3), config.get("conv_out_kernel", 3)
        if not all(kernel % 2 for kernel in self._kernels) or self._widths[0] // 2 <= config.get("freq_shift", 0):
            raise ValueError("the U-Net has kernels of an even size, or a timestep of no waves")
        self._heads = self._each("attention_head_dim", 8)  # diffusers' own misnomer
        self._depth, self._layers = self._each("transformer_layers_per_block", 1), self._each("layers_per_block", 2)
        self._text = self._each("cross_attention_dim", 1280)
        self._time = config.get("time_embedding_dim") or 4 * self._widths[0]

    def _each(self, name: str, usual: int) -> list[Any]:
        """A value of each level, where the config may have one for all."""
        value = self._config.get(name, usual)
        values = value if isinstance(value, list) else [value] * self._levels
        if len(values) != self._levels or ("transformer_layers" not in name and not all(isinstance(v, int) for v in values)):
            raise ValueError(f"{name} of the U-Net is no number for each of its {self._levels} levels")
        return values

    def shapes(self) -> Shapes:
        config, first = self._config, self._widths[0]
        yield from conv("conv_in", config.get("in_channels", 4), first, self._kernels[0])
        yield from linear("time_embedding.linear_1", first, self._time)
        yield from linear("time_embedding.linear_2", self._time, self._time)
        if config.get("time_cond_proj_dim"):
            yield "time_embedding.cond_proj.weight", (first, config["time_cond_proj_dim"])
        if config.get("addition_embed_type"):
            yield from linear("add_embedding.linear_1", config["projection_class_embeddings_input_dim"], self._time)
            yield from linear("add_embedding.linear_2", self._time, self._time)
        yield from self._downwards()
        yield from self._resnet("mid_block.resnets.0", self._widths[-1], self._widths[-1])
        yield from self._transformer("mid_block.attentions.0", self._levels - 1, _depth(self._depth[-1], 0))
        yield from self._resnet("mid_block.resnets.1", self._widths[-1], self._widths[-1])
        yield from self._upwards()
        yield from norm("conv_norm_out", first, self._groups)
        yield from conv("conv_out", first, config.get("out_channels", 4), self._kernels[1])

    def _downwards(self) -> Shapes:
        before = self._widths[0]
        for i, width in enumerate(self._widths):
            for j in range(self._layers[i]):
                yield from self._resnet(f"down_blocks.{i}.resnets.{j}", before if j == 0 else width, width)
                if UNET_BLOCKS[self._down[i]]:
                    yield from self._transformer(f"down_blocks.{i}.attentions.{j}", i, _depth(self._depth[i], j))
            if i + 1 < self._levels:
                yield from conv(f"down_blocks.{i}.downsamplers.0.conv", width, width)
            before = width

    def _upwards(self) -> Shapes:
        depths = self._config.get("reverse_transformer_layers_per_block")
        depths = self._each("reverse_transformer_layers_per_block", 1) if depths else self._depth[::-1]
        before = self._widths[-1]
        for i in range(self._levels):
            level = self._levels - 1 - i
            width, skip = self._widths[level], self._widths[max(level - 1, 0)]
            for j in range(self._layers[level] + 1):
                beside = skip if j == self._layers[level] else width
                yield from self._resnet(f"up_blocks.{i}.resnets.{j}", (width if j else before) + beside, width)
                if UNET_BLOCKS[self._up[i]]:
                    yield from self._transformer(f"up_blocks.{i}.attentions.{j}", level, _depth(depths[i], j))
            if level:
                yield from conv(f"up_blocks.{i}.upsamplers.0.conv", width, width)
            before = width

    def _resnet(self, name: str, given: int, width: int) -> Shapes:
        return resnet(name, given, width, self._groups, self._time)

    def _transformer(self, name: str, level: int, depth: int) -> Shapes:
        """diffusers' Transformer2DModel."""
        width, size = self._widths[level], () if self._config.get("use_linear_projection") else (1, 1)
        inner = self._heads[level] * (width // self._heads[level])
        yield from norm(f"{name}.norm", width, self._groups)
        yield from biased(f"{name}.proj_in", (inner, width, *size))
        for k in range(depth):
            yield from _block(f"{name}.transformer_blocks.{k}", inner, self._text[level])
        yield from biased(f"{name}.proj_out", (width, inner, *size))


def _depth(depth: Any, layer: int) -> int:
    return int(depth[layer] if isinstance(depth, list) else depth)


def _block(name: str, width: int, text: int) -> Shapes:
    """diffusers' BasicTransformerBlock."""
    for attention, keys in (("attn1", width), ("attn2", text)):
        for part, given in (("to_q", width), ("to_k", keys), ("to_v", keys)):
            yield f"{name}.{attention}.{part}.weight", (width, given)
        yield from linear(f"{name}.{attention}.to_out.0", width, width)
    for i in (1, 2, 3):
        yield from biased(f"{name}.norm{i}", (width,))
    yield from linear(f"{name}.ff.net.0.proj", width, 8 * width)
    yield from linear(f"{name}.ff.net.2", 4 * width, width)


def vae_shapes(config: Config) -> Shapes | None:
    """Of an AutoencoderKL; None for one with layers that are not known here. Raises ValueError for a config that contradicts itself."""
    widths, down, up = config["block_out_channels"], config["down_block_types"], config["up_block_types"]
    if not len(down) == len(up) == len(widths):
        raise ValueError("the VAE has other numbers of blocks that go down, blocks that go up and widths")
    if not {*down, *up} <= {*VAE_BLOCKS}:
        return None
    if not isinstance(config.get("layers_per_block", 1), int) or {config.get(f"{way}_channels", 3) for way in ("in", "out")} != {3}:
        raise ValueError("the VAE has layers_per_block that is no number, or pictures of other than three channels")
    return _vae(config)


def _vae(config: Config) -> Shapes:
    latents = config.get("latent_channels", 4)
    yield from _half(config, "encoder", 3, 2 * latents)
    yield from _half(config, "decoder", latents, 3)
    if config.get("use_quant_conv", True):
        yield from conv("quant_conv", 2 * latents, 2 * latents, 1)
    if config.get("use_post_quant_conv", True):
        yield from conv("post_quant_conv", latents, latents, 1)


def _half(config: Config, half: str, given: int, made: int) -> Shapes:
    """The encoder with its blocks down, or the decoder with those up, which have a layer more each."""
    widths, groups, layers = config["block_out_channels"], config.get("norm_num_groups", 32), config.get("layers_per_block", 1)
    decodes = half == "decoder"
    order = widths[::-1] if decodes else widths
    blocks, scale = ("up_blocks", "upsamplers") if decodes else ("down_blocks", "downsamplers")
    yield from conv(f"{half}.conv_in", given, order[0])
    before = order[0]
    for i, width in enumerate(order):
        for j in range(layers + decodes):
            yield from resnet(f"{half}.{blocks}.{i}.resnets.{j}", width if j else before, width, groups)
        if i + 1 < len(order):
            yield from conv(f"{half}.{blocks}.{i}.{scale}.0.conv", width, width)
        before = width
    for j in (0, 1):
        yield from resnet(f"{half}.mid_block.resnets.{j}", widths[-1], widths[-1], groups)
    if config.get("mid_block_add_attention", True):
        yield from norm(f"{half}.mid_block.attentions.0.group_norm", widths[-1], groups)
        for part in OLD_NAMES:
            yield from linear(f"{half}.mid_block.attentions.0.{part}", widths[-1], widths[-1])
    yield from norm(f"{half}.conv_norm_out", order[-1], groups)
    yield from conv(f"{half}.conv_out", order[-1], made)


def text_shapes(config: Config, *, projects: bool) -> Shapes:
    """Of a CLIPTextModel, or of one that also `projects`. Raises ValueError where its heads do not divide its width."""
    width, inner = config.get("hidden_size", 512), config.get("intermediate_size", 2048)
    if width % (heads := config.get("num_attention_heads", 8)):
        raise ValueError(f"a text encoder of width {width} cannot have {heads} heads")
    yield "embeddings.token_embedding.weight", (config.get("vocab_size", 49408), width)
    yield "embeddings.position_embedding.weight", (config.get("max_position_embeddings", 77), width)
    for i in range(config.get("num_hidden_layers", 12)):
        name = f"encoder.layers.{i}"
        for part in "kvq":
            yield from linear(f"{name}.self_attn.{part}_proj", width, width)
        yield from linear(f"{name}.self_attn.out_proj", width, width)
        for j in (1, 2):
            yield from biased(f"{name}.layer_norm{j}", (width,))
        yield from linear(f"{name}.mlp.fc1", width, inner)
        yield from linear(f"{name}.mlp.fc2", inner, width)
    yield from biased("final_layer_norm", (width,))
    if projects:
        yield "text_projection.weight", (config.get("projection_dim", 512), width)


def superres_shapes(config: Config) -> Shapes:
    """Of `pipelines.tiny_unet`, which doubles pictures. Raises ValueError for another shape than those that both backends run."""
    width, deep, blocks = config["width"], config["deep"], config["blocks"]
    if (
        len(config) != 4
        or config["state"] != OUT
        or len(blocks) != 3
        or not all(type(n) is int and 0 <= n <= MOST for n in (width, deep, *blocks))
        or not width
    ):
        raise ValueError(f"a network of shape {dict(config)} doubles no pictures")
    before, lower, after = blocks
    yield from conv("enter", OUT + 3, width)
    for name, count, channels in (("before", before, width), ("deep", lower if deep else 0, deep), ("after", after, width)):
        for i in range(count):
            yield from conv(f"{name}.{i}.first", channels, channels)
            yield from conv(f"{name}.{i}.second", channels, channels)
            yield from linear(f"{name}.{i}.time", 2 * FREQUENCIES, channels)
    if deep:
        yield from conv("down", width, deep, 2)
        yield from (("up.weight", (deep, width, 2, 2)), ("up.bias", (width,)))
    yield from conv("leave", width, OUT)


def biased(name: str, shape: tuple[int, ...]) -> Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def linear(name: str, given: int, made: int) -> Shapes:
    return biased(name, (made, given))


def conv(name: str, given: int, made: int, size: int = 3) -> Shapes:
    return biased(name, (made, given, size, size))


def norm(name: str, width: int, groups: int) -> Shapes:
    """Raises ValueError where the groups cannot be."""
    if width % groups:
        raise ValueError(f"{name} cannot have {groups} groups of {width} channels (norm_num_groups)")
    return biased(name, (width,))


def resnet(name: str, given: int, width: int, groups: int, time: int = 0) -> Shapes:
    """diffusers' ResnetBlock2D; of a VAE it knows no time."""
    yield from norm(f"{name}.norm1", given, groups)
    yield from conv(f"{name}.conv1", given, width)
    if time:
        yield from linear(f"{name}.time_emb_proj", time, width)
    yield from norm(f"{name}.norm2", width, groups)
    yield from conv(f"{name}.conv2", width, width)
    if given != width:
        yield from conv(f"{name}.conv_shortcut", given, width, 1)
