"""What a config describes is what the libraries build of it, and a model whose files hold something else is told before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pipelines import loading, original
from pipelines.checkpoint_error import CheckpointError
from pipelines.graphs import unet
from pipelines.graphs.weights import Weights
from pipelines.tiny_unet import Shape, TinyUNet
from pipelines.weight_files import Tensor
from pipelines.weight_shapes import Shapes, check_weights, superres_shapes, text_shapes, unet_shapes, vae_shapes

OF_FILES = ("architectures", "model_type")  # what a config says and a module does not take
UNETS: dict[str, dict[str, Any]] = {
    **{release: {} for release in original.RELEASES},
    "layers by level": {"layers_per_block": [1, 2, 3, 1]},
    "depths by level": {"transformer_layers_per_block": [1, 2, 1, 3]},
    "other depths on the way up": {"transformer_layers_per_block": [1, 2, 1, 2], "reverse_transformer_layers_per_block": [3, 1, 1, 1]},
    "heads that do not divide": {"attention_head_dim": [7, 3, 11, 8]},
    "texts by level": {"cross_attention_dim": [7, 8, 9, 10]},
    "a scale": {"time_cond_proj_dim": 14},
    "another time": {"time_embedding_dim": 64},
    "other kernels": {"conv_in_kernel": 5, "conv_out_kernel": 1},
    "inpainting": {"in_channels": 9},
    "linear projections": {"use_linear_projection": True},
}


def described(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix("text_model."): tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def found(shapes: Shapes | None) -> dict[str, tuple[int, ...]]:
    assert shapes is not None
    return dict(shapes)


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_is_diffusers(name: str) -> None:
    config = original.RELEASES.get(name, original.SD1)["unet"] | UNETS[name]
    with init_empty_weights():
        module = UNet2DConditionModel.from_config(config)
    assert found(unet_shapes(config)) == described(module)


@pytest.mark.parametrize(
    "change",
    [{}, {"use_quant_conv": False}, {"use_post_quant_conv": False}, {"mid_block_add_attention": False}, {"latent_channels": 16}],
    ids=str,
)
def test_a_vae_is_diffusers(change: dict[str, Any]) -> None:
    with init_empty_weights():
        module = AutoencoderKL.from_config(original.VAE | change)
    assert found(vae_shapes(original.VAE | change)) == described(module)


@pytest.mark.parametrize("release", original.RELEASES)
def test_a_text_encoder_is_transformers(release: str) -> None:
    for part, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        if part in original.RELEASES[release]:
            config = {
                name: value for name, value in original.RELEASES[release][part].items() if name not in ("architectures", "model_type")
            }
            with init_empty_weights():
                module = kind(CLIPTextConfig(**config))
            assert found(text_shapes(config, projects=part == "text_encoder_2")) == described(module)


@pytest.mark.parametrize("shape", [Shape(), Shape(width=8, deep=0), Shape(width=6, deep=4, blocks=(0, 3, 1))], ids=str)
def test_what_doubles_pictures_is_ours(shape: Shape) -> None:
    config = {"state": shape.state, "width": shape.width, "deep": shape.deep, "blocks": list(shape.blocks)}
    wanted = {name: size for name, size in described(TinyUNet(shape)).items() if shape.deep or not name.startswith("deep")}
    assert found(superres_shapes(config)) == wanted


@pytest.mark.parametrize(
    "change", [{"class_embed_type": "timestep"}, {"norm_num_groups": None}, {"mid_block_type": "UNetMidBlock2D"}], ids=str
)
def test_layers_that_are_not_known_have_no_shapes_and_no_graph(change: dict[str, Any]) -> None:
    assert unet_shapes(original.UNET | change) is None
    with pytest.raises(unet.NoGraph):
        unet.check(original.UNET | change)


def tensor(*shape: int, dtype: str = "F16") -> Tensor:
    return Tensor(dtype, shape, 0, 0)


def test_what_files_hold_is_compared_by_name_shape_and_kind() -> None:
    wanted = [("encoder.mid_block.attentions.0.to_q.weight", (4, 4)), ("conv.bias", (3,))]
    old = {"encoder.mid_block.attentions.0.query.weight": tensor(4, 4), "conv.bias": tensor(3), "beside": tensor(1, dtype="I8")}
    check_weights("vae", wanted, old)  # as files before diffusers 0.18 have it, and more than is wanted
    check_weights("text_encoder", [("a", (1,))], {"text_model.a": tensor(1, dtype="F8_E5M2")})
    for wrong in (tensor(4), tensor(), tensor(0), tensor(3, 1), tensor(3, dtype="I8"), tensor(3, dtype="BOOL")):
        with pytest.raises(CheckpointError, match=r"vae: conv\.bias (is|holds) ") as refused:
            check_weights("vae", wanted, old | {"conv.bias": wrong})
        assert refused.value.code == "weights_misfit"
    with pytest.raises(CheckpointError, match=r"to_q\.weight is missing"):
        check_weights("vae", wanted, {"conv.bias": tensor(3)})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_those_of_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    save_file({"w": every}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(Weights(tmp_path)["w"].astype(np.float32), every.float().numpy())


def test_a_lack_of_memory_is_not_told_as_weights_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "vae"
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_pretrained(folder)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        loading._module(AutoencoderKL, folder, torch.device("cpu"), torch.float32)


def test_what_torch_alone_knows_is_compared_with_its_own_module(tmp_path: Path) -> None:
    """Of such a VAE no shapes are known here, so that it is first looked at where torch opens it."""
    folder = tmp_path / "vae"
    kinds = {"down_block_types": ("AttnDownEncoderBlock2D",), "up_block_types": ("AttnUpDecoderBlock2D",)}
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, **kinds).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert vae_shapes(config) is None
    loading._module(AutoencoderKL, folder, torch.device("cpu"), torch.float32)
    for change, code in (({"layers_per_block": 3}, "weights_misfit"), ({"norm_num_groups": 3}, "bad_config")):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError) as refused:
            loading._module(AutoencoderKL, folder, torch.device("cpu"), torch.float32)
        assert refused.value.code == code
