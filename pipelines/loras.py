"""LoRA files, read without torch: which layers of a model they change, and by how much. Safetensors only.

W' = W + weight * alpha / rank * up @ down (arXiv 2106.09685, section 4.1). Two forms are read: that of diffusers and PEFT, whose keys
name modules, and that of kohya, which writes underscores for dots and for SDXL the original layout's names.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.card import LoraInfo
from pipelines.graphs.weights import Weights
from pipelines.lora_names import original
from pipelines.prompts import Worn
from pipelines.weight_files import read_header, weight_files

Key = TypeVar("Key")
Thing = TypeVar("Thing")

Delta = NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]  # of the weights of one part, by name

PARTS = {
    "lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "unet.": "unet", "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2",
}  # fmt: skip
KEY = re.compile(
    r"(?P<layer>.+?)(?:[._](?P<old>to_[qkv]|to_out)_lora|\.lora|\.lora_linear_layer)?"
    r"\.(?P<what>lora_A|lora_B|lora_down|lora_up|down|up|alpha)(?:\.default)?(?:\.weight)?"
)
KINDS = {"lora_A": "down", "lora_down": "down", "down": "down", "lora_B": "up", "lora_up": "up", "up": "up", "alpha": "alpha"}
OLD_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # of text encoders, in older files
END = ".weight"
END_BYTES = 1 << 20
KEPT = 2  # sets of LoRAs that are kept ready, each with weights of its own for what it changes
METADATA = "lora_adapter_metadata"  # PEFT's configuration, as diffusers keeps it
PICKLES = (".pt", ".ckpt", ".bin", ".pth")
ODD = ("use_rslora", "use_dora", "alpha_pattern")  # of PEFT's configuration, which change the formula


class LoraError(ValueError):
    """The file is no LoRA of this model; the message says why."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What a file says of one layer: the names of its tensors."""

    down: str
    up: str
    alpha: str | None


class Loras:
    """The LoRA files of a folder that fit a model, by name: files without their ending. Files are read when they are asked for."""

    def __init__(self, folder: Path | None, shapes: Mapping[str, Shapes]) -> None:
        """`shapes` are those of the model's parts: unet, text_encoder and perhaps text_encoder_2."""
        self._layers = {
            part: {_flat(name.removesuffix(END)): name for name in of_part if name.endswith(END)} for part, of_part in shapes.items()
        }
        of_unet = self._layers.get("unet", {})
        self._layers["unet"] = {other: name for flat, name in of_unet.items() if (other := original(flat, of_unet))} | of_unet
        self._shapes = shapes
        self._paths = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"} if folder else {}
        pickles = [path for path in folder.iterdir() if path.suffix in PICKLES and path.stem not in self._paths] if folder else []
        found = [self._info(name, path) for name, path in self._paths.items()]
        found += [LoraInfo(path.stem, "", f"a {path.suffix} file is a pickle, which runs code where it is read") for path in pickles]
        self.infos = tuple(sorted(found, key=lambda info: info.name))

    def deltas(self, part: str, worn: Worn) -> dict[str, Delta]:
        """What is added to the weights of a part, by name. Raises LoraError."""
        total: dict[str, Delta] = {}
        for name, weight in worn:
            if name not in self._paths:
                raise LoraError(f"this worker has no LoRA {name}")
            for target, delta in self._of_file(self._paths[name], part).items():
                total[target] = total[target] + np.float32(weight) * delta if target in total else np.float32(weight) * delta
        return total

    def _info(self, name: str, path: Path) -> LoraInfo:
        """By the head of the file alone: a folder may hold many of them."""
        try:
            head = _head(path)
            for (part, flat), layer in _layers(head.shapes).items():
                self._target(part, flat, head.shapes[layer.down], head.shapes[layer.up])
        except LoraError as error:
            return LoraInfo(name, "", str(error))
        return LoraInfo(name, head.hash)

    def _target(self, part: str, flat: str, down: tuple[int, ...], up: tuple[int, ...]) -> str:
        """The weight that a layer's two halves change. Raises LoraError where the model has none of that size."""
        target = self._layers.get(part, {}).get(flat)
        if target is None:
            raise LoraError("it is of another model: it changes a layer that this one does not have")
        shape, rank = self._shapes[part][target], down[0] if down else 0
        if rank < 1 or math.prod(up) != shape[0] * rank or math.prod(down) * shape[0] != math.prod(shape) * rank:
            raise LoraError("it is of another model: a layer has another size")
        return target

    def _of_file(self, path: Path, part: str) -> dict[str, Delta]:
        head, weights = _head(path), Weights(path)
        found = {}
        for (of, flat), layer in _layers(head.shapes).items():
            if of == part:
                target = self._target(of, flat, head.shapes[layer.down], head.shapes[layer.up])
                found[target] = _delta(weights, layer, self._shapes[part][target], head.alphas.get(part))
        return found


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a file says: its tensors' shapes, and the alpha of each part where PEFT noted it."""

    shapes: Shapes
    alphas: Mapping[str, float]
    hash: str  # of the head, the size and the end of the file


def _head(path: Path) -> Head:
    try:
        read_header(path)
        with path.open("rb") as file:
            text = file.read(int.from_bytes(file.read(8), "little"))
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - END_BYTES))
            digest = hashlib.sha256(text + file.read() + str(size).encode())
        told: dict[str, Any] = json.loads(text)
        config: dict[str, Any] = json.loads(told.pop("__metadata__", {}).get(METADATA, "{}"))
        shapes = {name: tuple(tensor["shape"]) for name, tensor in told.items()}
        alphas = {key.removesuffix(".lora_alpha"): float(value) for key, value in config.items() if key.endswith(".lora_alpha")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # CheckpointError is a ValueError
        raise LoraError("it cannot be read as safetensors") from error
    if odd := [name for name in ODD if any(value for key, value in config.items() if key.partition(".")[2] == name)]:
        raise LoraError(f"it uses {' and '.join(odd)}, which is not done here")
    return Head(shapes, alphas, digest.hexdigest()[:16])


def _layers(names: Iterable[str]) -> dict[tuple[str, str], Layer]:
    """(part, flat name of the layer) -> its tensors. Raises LoraError for tensors that are none of a plain LoRA."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        prefix = next((p for p in PARTS if name.startswith(p)), None)
        match = KEY.fullmatch(name.removeprefix(prefix)) if prefix else None
        if prefix is None or match is None:
            raise LoraError("it holds tensors that are none of a LoRA (DoRA, LoHa and LoKr are not done here)")
        part, flat = PARTS[prefix], _flat(match["layer"])
        if old := match["old"]:
            flat += f"_{OLD_NAMES[old]}" if part != "unet" else f"_{'to_out_0' if old == 'to_out' else old}"
        found.setdefault((part, flat), {})[KINDS[match["what"]]] = name
    if not found:
        raise LoraError("it holds no layer of a LoRA")
    try:
        return {key: Layer(tensors["down"], tensors["up"], tensors.get("alpha")) for key, tensors in found.items()}
    except KeyError as error:
        raise LoraError("it holds one half of a layer without the other") from error


def _delta(weights: Weights, layer: Layer, shape: tuple[int, ...], alpha: float | None) -> Delta:
    """up @ down in the shape of the weight; of convolutions, down has the kernel's size and up is 1 x 1."""
    down, up = (weights[name].astype(np.float32) for name in (layer.down, layer.up))
    rank = len(down)
    if layer.alpha is not None:
        alpha = float(weights[layer.alpha].reshape(-1)[0])
    product: Delta = up.reshape(shape[0], rank) @ down.reshape(rank, -1)
    return product.reshape(shape) * np.float32(1 if alpha is None else alpha / rank)


def _flat(name: str) -> str:
    """As kohya writes it, and without what not all versions of the libraries have."""
    return name.replace(".", "_").removeprefix("text_model_").replace("_processor", "")


def shapes(folder: Path) -> Shapes:
    """Of the weights of a part of a checkpoint."""
    return {name: shape for path in weight_files(folder) for name, shape in _head(path).shapes.items()}


class Kept(Generic[Key, Thing]):
    """What was made for the keys, such as sets of LoRAs, that were used last: making it takes long, and holding it memory."""

    def __init__(self, make: Callable[[Key], Thing], most: int) -> None:
        self._make, self._most = make, most
        self._things: OrderedDict[Key, Thing] = OrderedDict()

    def get(self, key: Key) -> Thing:
        if key not in self._things:
            while len(self._things) >= self._most:
                self._things.popitem(last=False)
            self._things[key] = self._make(key)
        self._things.move_to_end(key)
        return self._things[key]
