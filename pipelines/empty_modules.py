"""Modules of diffusers and transformers without memory for their weights: what a config describes, as the libraries themselves have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers import CLIPTextConfig

from pipelines.checkpoint_error import CheckpointError


def shapes(kind: Any, folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of the module `kind` that the config in that folder describes, by name, those of a text encoder without the first
    part that older files have. Raises CheckpointError where nothing can be built.
    """
    try:
        with init_empty_weights():
            text = folder.name.startswith("text")
            module = kind(CLIPTextConfig.from_pretrained(folder)) if text else kind.from_config(kind.load_config(folder))
    except Exception as error:  # the libraries raise whatever a field of another kind leads to; nothing of it takes memory
        raise CheckpointError(f"{folder.name} cannot be built as its config says: {error}", "bad_config") from error
    return {name.removeprefix("text_model."): tuple(tensor.shape) for name, tensor in module.state_dict().items()}
