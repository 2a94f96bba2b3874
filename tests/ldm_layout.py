"""The way back: a checkpoint in diffusers layout as one file under the original names (as diffusers' own script converts it)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}  # fmt: skip
UNET = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2"}  # fmt: skip
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
EMBEDDINGS = {"embeddings.token_embedding.weight": "token_embedding.weight", "embeddings.position_embedding.weight": "positional_embedding",
              "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}  # fmt: skip

Tensors = dict[str, torch.Tensor]


def write_single(folder: Path, path: Path, clip: str = "cond_stage_model.transformer.text_model.", **changes: Any) -> Path:
    """`changes` replace tensors by name, or leave them out where they are None."""
    tensors = {f"model.diffusion_model.{k}": v for k, v in _unet(_read(folder / "unet")).items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in _vae(_read(folder / "vae")).items()}
    text = _read(folder / "text_encoder")
    if (folder / "text_encoder_2").exists():
        tensors |= {f"conditioner.embedders.0.transformer.text_model.{k}": v for k, v in text.items()}
        tensors |= {f"conditioner.embedders.1.model.{k}": v for k, v in _open_clip(_read(folder / "text_encoder_2")).items()}
    elif clip.endswith(".model."):
        tensors |= {clip + k: v for k, v in _open_clip(text).items()}
    else:
        tensors |= {clip + k: v for k, v in text.items()}
    tensors |= {name: value for name, value in changes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous().clone() for name, value in tensors.items() if value is not None}, path)
    return path


def _read(folder: Path) -> Tensors:
    [path] = folder.glob("*.safetensors")
    return {name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}


def _unet(state: Tensors) -> Tensors:
    layers = 1 + max(int(k.split(".")[3]) for k in state if k.startswith("down_blocks.") and ".resnets." in k)
    found: Tensors = {}
    for key, tensor in state.items():
        top, *rest = key.split(".")
        if top in ("down_blocks", "up_blocks"):
            level, what, j = int(rest[0]), rest[1], int(rest[2])
            tail = ".".join(rest[3:])
            if top == "down_blocks":
                at = f"input_blocks.{(layers + 1) * level + j + 1}"
                at = f"input_blocks.{(layers + 1) * (level + 1)}" if what == "downsamplers" else at
                tail = tail.replace("conv", "op") if what == "downsamplers" else tail
            else:
                at = f"output_blocks.{(layers + 1) * level + (layers if what == 'upsamplers' else j)}"
            crossed = f"up_blocks.{level}.attentions.0.norm.weight" in state
            place = {"resnets": "0", "attentions": "1", "downsamplers": "0", "upsamplers": "2" if crossed else "1"}[what]
            found[f"{at}.{place}.{_resnet(tail) if what == 'resnets' else tail}"] = tensor
        elif top == "mid_block":
            place = {"resnets0": "0", "attentions0": "1", "resnets1": "2"}[rest[0] + rest[1]]
            tail = ".".join(rest[2:])
            found[f"middle_block.{place}.{_resnet(tail) if rest[0] == 'resnets' else tail}"] = tensor
        else:
            stem, _, ending = key.rpartition(".")
            found[f"{UNET[stem]}.{ending}"] = tensor
    return found


def _resnet(tail: str) -> str:
    stem, _, ending = tail.rpartition(".")
    return f"{RESNET[stem]}.{ending}"


def _vae(state: Tensors) -> Tensors:
    levels = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("decoder.up_blocks."))
    found: Tensors = {}
    for key, tensor in state.items():
        name = key.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        parts = name.split(".")
        if "_blocks" in name:
            down = "down_blocks" in name
            level = int(parts[2]) if down else levels - 1 - int(parts[2])
            scaled = f"{'down' if down else 'up'}sample.{'.'.join(parts[5:])}"
            name = f"{parts[0]}.{'down' if down else 'up'}.{level}." + (f"block.{'.'.join(parts[4:])}" if parts[3] == "resnets" else scaled)
        if "mid_block.attentions.0" in name:
            for ours, theirs in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
                name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
            tensor = tensor[..., None, None] if name.endswith("weight") and ".norm." not in name else tensor
        found[name] = tensor
    return found


def _open_clip(state: Tensors) -> Tensors:
    found: Tensors = {EMBEDDINGS[k]: v for k, v in state.items() if k in EMBEDDINGS}
    if "text_projection.weight" in state:
        found["text_projection"] = state["text_projection.weight"].T
    for i in range(1 + max(int(k.split(".")[2]) for k in state if k.startswith("encoder.layers."))):
        for ending in ("weight", "bias"):
            at = f"encoder.layers.{i}."
            whole = torch.cat([state[f"{at}self_attn.{part}_proj.{ending}"] for part in "qkv"])
            found[f"transformer.resblocks.{i}.attn.in_proj_{ending}"] = whole
            for ours, theirs in OPEN_CLIP.items():
                found[f"transformer.resblocks.{i}.{theirs}.{ending}"] = state[f"{at}{ours}.{ending}"]
    return found
