"""Tokenizer and text encoder: build both, then pretrain the encoder to know what its words look like (`python -m training.text`).

The encoder's last state predicts a thumbnail of the picture and the scene's attributes; with `--contrastive` it also has to find its own
picture among those of the batch, as CLIP's does. It learns further with the U-Net.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.captions import all_texts, caption
from training.checkpoint import Clock, descend, generator, learning_rate, load, same_run, save, to_the_end, told
from training.compositor import BACKGROUND_NAMES, COLOUR_NAMES, Scene
from training.machine import CPU, Machine, add_arguments, machine_of
from training.slices import finished
from training.words import STYLES, THINGS

CONTEXT = 32  # tokens of a prompt, start and end included
START, END = "<|startoftext|>", "<|endoftext|>"
WHENCE = ("is_local", "local_files_only")  # what transformers notes of where a tokenizer came from


@dataclass(frozen=True)
class Settings:
    total: int = 120_000  # captions
    batch: int = 64
    peak: float = 1e-3
    contrastive: float = 0.0  # weight of the contrastive loss
    save_every: int = 16_000
    seed: int = 0


def build_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE in CLIP's form, with merges until each word of our captions is one token."""
    words = {part for text in all_texts() for part in re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9{}]+", text)}
    return tokenizer_from_merges(learn_merges(sorted(words)), sorted(pre_tokenizers.ByteLevel.alphabet()))


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """The most frequent pair first, ties in alphabetical order: the tokenizers library breaks them at random."""
    split, merges = [[*w[:-1], w[-1] + "</w>"] for w in words], []
    while any(len(w) > 1 for w in split):
        counts = Counter(pair for w in split for pair in pairwise(w))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = [merge(w, best) for w in split]
    return merges


def merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in word:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def read_merges(tokenizer_json: str) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer_json)["model"]["merges"]
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in merges]


def tokenizer_from_merges(merges: list[tuple[str, str]], alphabet: list[str]) -> CLIPTokenizer:
    """CLIP's order: bytes, bytes that end a word, merges, start, end."""
    words = [*alphabet, *(a + "</w>" for a in alphabet), *(a + b for a, b in merges), START, END]
    vocab = {w: i for i, w in enumerate(dict.fromkeys(words))}  # two merges may make one token
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Both forms: tokenizer.json, and the older vocab.json with merges.txt."""
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    told = {name: value for name, value in json.loads(config.read_text(encoding="utf-8")).items() if name not in WHENCE}
    config.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    merges = read_merges((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = 192, layers: int = 3, heads: int = 6) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        max_position_embeddings=CONTEXT, projection_dim=width, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    text = CLIPTextModel(config)
    text.set_attn_implementation("eager")  # twice as fast to train on a CPU as SDPA
    return text


def inherit(folder: Path, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder of a checkpoint with the words of another tokenizer: known tokens keep their vectors, new ones get the mean."""
    old = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    known = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
    config = old.config
    text = build_text_encoder(tokenizer, config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    state = old.state_dict()
    name = next(n for n in state if n.endswith("token_embedding.weight"))
    vectors = state[name]
    table = vectors.mean(0).repeat(len(tokenizer), 1)  # [tokens, width]
    for token, row in tokenizer.get_vocab().items():
        if token in known:
            table[row] = vectors[known[token]]
    text.load_state_dict(state | {name: table})
    return text


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """[n, 32] token ids, as the diffusers pipeline makes them."""
    return tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids


class Heads(nn.Module):
    """From the end-of-text state to a thumbnail and the scene's attributes; thrown away after pretraining."""

    SIZES = (len(STYLES), len(THINGS), len(COLOUR_NAMES) + 1, len(BACKGROUND_NAMES) + 1, 2)

    def __init__(self, width: int, pixels: int, contrastive: float = 0.0) -> None:
        super().__init__()
        self.contrastive = contrastive
        self.attributes = nn.Linear(width, sum(self.SIZES))
        self.thumbnail = nn.Linear(width, pixels)
        if contrastive:
            self.picture = nn.Sequential(nn.Linear(pixels, width), nn.GELU(), nn.Linear(width, width))  # the other tower
            self.scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def contrast(self, state: torch.Tensor, scenes: torch.Tensor, thumbnails: torch.Tensor) -> torch.Tensor:
        """Which picture of the batch has this caption, and the reverse (arXiv 2103.00020, figure 3). Equal scenes are no rivals."""
        texts, pictures = F.normalize(state, dim=1), F.normalize(self.picture(thumbnails), dim=1)
        logits = self.scale.exp().clamp(max=100) * texts @ pictures.T  # [n, n]
        same = (scenes[:, None] == scenes[None]).all(-1) & ~torch.eye(len(scenes), dtype=torch.bool, device=scenes.device)
        logits = logits.masked_fill(same, -torch.inf)
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    def loss(self, state: torch.Tensor, scenes: torch.Tensor, thumbnails: torch.Tensor) -> torch.Tensor:
        """`scenes` [n, 5] as in scenes.npy; -1 (not named) becomes class 0."""
        shift = torch.tensor([0, 0, 1, 1, -1], device=state.device)
        logits = self.attributes(state).split(self.SIZES, dim=1)
        attributes = sum(F.cross_entropy(part, target) for part, target in zip(logits, (scenes + shift).T, strict=True))
        loss = attributes + 10 * F.mse_loss(self.thumbnail(state), thumbnails)
        return loss + self.contrastive * self.contrast(state, scenes, thumbnails) if self.contrastive else loss


def thumbnails_of(pictures: np.ndarray, side: int = 16) -> np.ndarray:
    """[n, h, w, 3] uint8 -> [n, side * side * 3] float32 in -1..1, area averages."""
    block = pictures.shape[1] // side
    out = [p.reshape(side, block, side, block, 3).mean((1, 3)).reshape(-1) for p in pictures]
    return np.stack(out).astype(np.float32) / 127.5 - 1


def train(
    pictures: np.ndarray, scenes: np.ndarray, folder: Path, settings: Settings, minutes: float = 1e9, machine: Machine = CPU,
    **size: int,
) -> CLIPTextModel:  # fmt: skip
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer()
    save_tokenizer(tokenizer, folder / "tokenizer")
    text, thumbs = build_text_encoder(tokenizer, **size), thumbnails_of(pictures)
    heads = Heads(text.config.hidden_size, thumbs.shape[1], settings.contrastive).to(machine.device)
    network = machine.compile(text.to(machine.device))
    params = [*text.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(params, lr=settings.peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    images, path = 0, folder / "text.pt"
    begun = told(settings) | {"scenes": hashlib.sha256(np.ascontiguousarray(scenes).tobytes()).hexdigest()}

    def keep() -> None:
        parts = {"text": text.state_dict(), "heads": heads.state_dict(), "optimiser": optimiser.state_dict()}
        save(path, **parts, images=images, settings=begun)

    if path.exists():
        state = load(path)
        same_run(path, state, begun)
        text.load_state_dict(state["text"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        images = state["images"]
    saved_at = images
    with Clock("text", settings.total, images, minutes) as clock:
        while images < settings.total and not clock.out_of_time:
            rng = generator(settings.seed, images)
            rows = rng.integers(len(scenes), size=settings.batch)
            ids = tokenize(tokenizer, [caption(Scene(*map(int, scenes[r])), rng) for r in rows])
            with machine.autocast():
                longest = int((ids == tokenizer.eos_token_id).int().argmax(1).max()) + 1  # attention is causal: padding adds nothing
                state = network(machine.on(ids[:, :longest])).pooler_output
            loss = heads.loss(state.float(), machine.on(torch.from_numpy(scenes[rows]).long()), machine.on(torch.from_numpy(thumbs[rows])))
            descend(optimiser, loss, partial(learning_rate, images / settings.total))
            images += settings.batch
            clock.tick(images, float(loss.detach()))
            if images - saved_at >= settings.save_every:
                keep()
                saved_at = images
    keep()
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".training"))
    add_arguments(parser)
    parser.add_argument("--contrastive", type=float, default=Settings.contrastive, help="weight of the contrastive loss; 1 is CLIP's")
    args = parser.parse_args()
    data, settings = args.root / "data", Settings(total=args.total or Settings.total, contrastive=args.contrastive)
    finished(data / "compose.json")
    train(np.load(data / "pictures.npy", mmap_mode="r"), np.load(data / "scenes.npy"), args.root, settings, args.minutes, machine_of(args))
    to_the_end("text", load(args.root / "text.pt")["images"], settings.total)


if __name__ == "__main__":
    main()
