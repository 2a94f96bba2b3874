"""OpenVINO graphs against diffusers' modules, weights as numpy, tokens against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines.checkpoint_error import CheckpointError
from pipelines.graphs import clip, unet, vae
from pipelines.graphs.runtime import openvino
from pipelines.graphs.unet import NoGraph
from pipelines.graphs.weights import Weights
from pipelines.openvino_model import OpenVinoDenoiser
from pipelines.perturbation import disturbed
from pipelines.prompt_chunks import one_chunk
from pipelines.tokens import Tokenizer

MINI = Path(__file__).parents[1] / "models" / "celadon-mini"
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SMALL = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 24}
# Layouts of the U-Nets that Stable Diffusion 1.x and 2.x are made of, small.
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {
        "block_out_channels": (16, 32, 32, 32), "attention_head_dim": 4, "layers_per_block": 2,
        "down_block_types": (CROSS_DOWN,) * 3 + ("DownBlock2D",), "up_block_types": ("UpBlock2D",) + (CROSS_UP,) * 3,
    },
    "sd2": {
        "sample_size": 64,  # laid out for large latents
        "block_out_channels": (16, 32, 64), "attention_head_dim": [2, 4, 8], "use_linear_projection": True, "upcast_attention": True,
        "down_block_types": (CROSS_DOWN,) * 2 + ("DownBlock2D",), "up_block_types": ("UpBlock2D",) + (CROSS_UP,) * 2,
    },
    "deep": {
        "block_out_channels": (16, 32), "attention_head_dim": 4, "transformer_layers_per_block": [1, 2], "flip_sin_to_cos": False,
        "freq_shift": 1, "down_block_types": ("DownBlock2D", CROSS_DOWN), "up_block_types": (CROSS_UP, "UpBlock2D"),
    },
}  # fmt: skip


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def saved(folder: Path, module: Any) -> dict[str, Any]:
    module.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def compiled(model: Any, precision: str = "f32", **hints: Any) -> Any:
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, **hints})


def forms(folder: Path, config: dict[str, Any], *, int8: bool = False, **hints: Any) -> Any:
    """The forms of a U-Net, each compiled when it is asked for."""
    built = {"unet": unet.build, "unet_remember": unet.build_remember, "unet_recall": unet.build_recall}
    return lambda form, worn: compiled(built[form](Weights(folder), config, int8=int8), **hints)


def draws(config: dict[str, Any], rows: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, config["in_channels"], *size), dtype=np.float32)
    context = rng.standard_normal((rows, 7, config["cross_attention_dim"]), dtype=np.float32)
    return x, np.linspace(990, 0.25, rows, dtype=np.float32), context


# Graphs


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("size", [(8, 8), (11, 14)], ids=["even", "odd"])
def test_the_unet_graph_is_diffusers_unet(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = UNet2DConditionModel(**SMALL | UNETS[name]).eval()
    config = saved(tmp_path, module)
    x, t, context = draws(config, 3, size)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(context)).sample.numpy()
    denoiser = OpenVinoDenoiser(forms(tmp_path, config), config)
    assert relative(denoiser(x, t, context), wanted) < 1e-5
    assert np.array_equal(denoiser(x, t, context, ["", "", ""]), denoiser(x, t, context))


def test_weights_in_8_bits_are_those_of_a_module_whose_linear_layers_are_rounded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = UNet2DConditionModel(**SMALL | UNETS["sd1"]).eval()
    config = saved(tmp_path, module)
    x, t, context = draws(config, 3, (8, 8))
    usual, exact = ({}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})  # usually, what these matrices multiply is rounded too, in groups
    quick, found = (OpenVinoDenoiser(forms(tmp_path, config, int8=True, **hints), config)(x, t, context) for hints in (usual, exact))
    with torch.inference_mode():
        stored = module(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(context)).sample.numpy()
        for layer in (m for m in module.modules() if isinstance(m, torch.nn.Linear)):
            step = layer.weight.abs().amax(1, keepdim=True) / 127
            layer.weight.copy_((layer.weight / step).round() * step)
        rounded = module(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(context)).sample.numpy()
    assert relative(found, rounded) < 1e-5 < relative(found, stored) < 1e-2
    assert relative(quick, stored) < 1e-2


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_disturbed_rows_are_those_of_torch_and_the_others_stay(streams: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = UNet2DConditionModel(**SMALL | UNETS["sd1"]).eval()
    config = saved(tmp_path, module)
    x, t, context = draws(config, 5, (16, 16))  # the mid block sees 2x2
    marks = ["", "pag", "seg", "", "pag"]
    with torch.inference_mode(), disturbed(module, marks):
        wanted = module(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(context)).sample.numpy()
    denoiser = OpenVinoDenoiser(forms(tmp_path, config), config, streams)
    found, plain = denoiser(x, t, context, marks), denoiser(x, t, context)
    assert relative(found, wanted) < 1e-5
    for i, mark in enumerate(marks):
        assert np.array_equal(found[i], plain[i]) == (mark == "")


@pytest.mark.parametrize(("change", "said"), [
    ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
    ({"class_embed_type": "timestep"}, "class_embed_type"),
    ({"addition_embed_type": "text_time", "resnet_time_scale_shift": "scale_shift"}, "addition_embed_type, resnet_time_scale_shift"),
])  # fmt: skip
def test_layers_without_a_graph_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(NoGraph, match=said):
        unet.check({"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]} | change)


@pytest.mark.parametrize("attention", [True, False])
def test_the_decoder_graph_is_diffusers_decoder(attention: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(8, 16, 32),
        layers_per_block=2, latent_channels=4, norm_num_groups=8, mid_block_add_attention=attention, use_post_quant_conv=attention,
    ).eval()  # fmt: skip
    config = saved(tmp_path, module)
    z = np.random.default_rng(0).standard_normal((1, 4, 9, 6), dtype=np.float32)
    with torch.inference_mode():
        wanted = module.decode(torch.from_numpy(z)).sample.numpy()
    assert relative(compiled(vae.build(Weights(tmp_path), config))({0: z})[0], wanted) < 1e-5


@pytest.mark.parametrize("size", [(24, 40), (33, 18)], ids=["even", "odd"])
@pytest.mark.parametrize("attention", [True, False])
def test_the_encoder_graph_is_diffusers_encoder(attention: bool, size: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(8, 16, 32),
        layers_per_block=2, latent_channels=4, norm_num_groups=8, mid_block_add_attention=attention, use_quant_conv=attention,
    ).eval()  # fmt: skip
    config = saved(tmp_path, module)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, *size)).astype(np.float32)
    with torch.inference_mode():
        wanted = module.encode(torch.from_numpy(x)).latent_dist.parameters.numpy()
    assert relative(compiled(vae.build_encoder(Weights(tmp_path), config))({0: x})[0], wanted) < 1e-5


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_the_text_graph_is_transformers_encoder(act: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=12,
        hidden_act=act, bos_token_id=48, eos_token_id=49, pad_token_id=49,
    )  # fmt: skip
    module = CLIPTextModel(config).eval()
    said = saved(tmp_path, module)
    model = compiled(clip.build(Weights(tmp_path), said))
    for length in (12, 5):
        ids = np.random.default_rng(length).integers(0, 50, (1, length))
        with torch.inference_mode():
            out = module(torch.from_numpy(ids), output_hidden_states=True)
            wanted = out[0].numpy(), module.final_layer_norm(out.hidden_states[-2]).numpy()
        for skip, states in enumerate(wanted, 1):
            found = model(plainly(ids, skip))[0]
            assert found.shape == states.shape and relative(found, states) < 1e-5
    with pytest.raises(NoGraph, match="use_attention_mask"):
        clip.build(Weights(tmp_path), said | {"use_attention_mask": True})


def plainly(ids: np.ndarray, skip: int) -> dict[str, np.ndarray]:
    """The encoder's inputs without any learned vector."""
    learned, vectors = np.zeros((*ids.shape, 1), bool), np.full((*ids.shape, 24), np.nan, np.float32)
    return {"ids": ids.astype(np.int32), "skip": np.array([skip], np.int32), "vectors": vectors, "learned": learned}


def test_weights_of_any_precision_and_in_shards(tmp_path: Path) -> None:
    values = torch.randn(6, 5)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        save_file({"a": values.to(dtype)}, tmp_path / "model.safetensors")
        assert np.array_equal(Weights(tmp_path)["a"].astype(np.float32), values.to(dtype).float().numpy())
    save_file({"b": values[:2].clone()}, tmp_path / "x-00001.safetensors")
    save_file({"c": values[2:].clone()}, tmp_path / "x-00002.safetensors")
    shards = {"weight_map": {"b": "x-00001.safetensors", "c": "x-00002.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(shards))
    found = Weights(tmp_path)
    assert "a" not in found and np.array_equal(np.concatenate([found["b"], found["c"]]), values.numpy())
    with pytest.raises(CheckpointError, match="holds no safetensors"):
        Weights(tmp_path / "elsewhere")


# Tokens

PROMPTS = (
    "", "a red apple", "A  Red\n\tAPPLE!", "it's 2 cats, isn't it?", "café naïve Ａ１ ½", "日本語 и русский", "🍎🍏 👩‍🚀", "a" * 300,
    "word " * 120, "<|endoftext|> in the middle <|startoftext|>", "don't l'ami we'll you've",
    "\u00a0odd\u200bspaces\u3000", "#@$%^&*()_+ {}[]",
)  # fmt: skip


@pytest.mark.parametrize("older", [False, True], ids=["tokenizer.json", "vocab and merges"])
def test_tokens_are_those_of_transformers(older: bool, tmp_path: Path) -> None:
    for path in (MINI / "tokenizer").iterdir():
        if not (older and path.name == "tokenizer.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    ours, theirs = Tokenizer(tmp_path, 32), CLIPTokenizer.from_pretrained(MINI / "tokenizer")
    for prompt in PROMPTS:
        wanted = theirs(prompt, padding="max_length", max_length=32, truncation=True).input_ids
        found = ours.pieces(prompt)
        assert one_chunk([[id] for id in found], ours.marks).ids == wanted, prompt
        assert len(found) == len(theirs(prompt, truncation=False, verbose=False).input_ids) - 2, prompt
