"""CLIP's tokenizer without transformers: the same ids from the same files, through the `tokenizers` library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Pieces
from tokenizers.models import BPE

from pipelines.checkpoint_error import CheckpointError
from pipelines.prompt_chunks import Marks

START, END, COMMA = "<|startoftext|>", "<|endoftext|>", ",</w>"
PARTS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """A text -> ids of its tokens; and what must be known of them."""

    def __init__(self, folder: Path, length: int) -> None:
        """Raises OSError where there is neither tokenizer.json nor vocab.json and merges.txt, CheckpointError where they say nothing."""
        whole = folder / "tokenizer.json"
        try:
            self._pieces = Pieces.from_file(str(whole)) if whole.exists() else _from_merges(folder)
        except OSError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"the tokenizer cannot be read: {error}", "bad_config") from error
        self._pieces.no_truncation()
        self._pieces.no_padding()
        self.marks = Marks(self._id(START), self._id(END), self._id(_pad_token(folder)), self._pieces.token_to_id(COMMA), length)

    def _id(self, token: str) -> int:
        found = self._pieces.token_to_id(token)
        if found is None:
            raise OSError(f"the tokenizer has no token {token}")
        return found

    def pieces(self, text: str) -> list[int]:
        """The ids of a text's tokens, without start and end."""
        found: list[int] = self._pieces.encode(text, add_special_tokens=False).ids
        return found


def _from_merges(folder: Path) -> Pieces:
    """The older two files, put together as transformers does."""
    vocab: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [(a, b) for a, b in (line.split(" ") for line in lines if line and not line.startswith("#version"))]
    pieces = Pieces(BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False, unk_token=END))
    pieces.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(PARTS), behavior="removed", invert=True)
    pieces.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    pieces.post_processor = processors.RobertaProcessing(
        (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
    )
    pieces.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (START, END)])
    return pieces


def _pad_token(folder: Path) -> str:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        told: Any = json.loads((folder / name).read_text()).get("pad_token") if (folder / name).exists() else None
        if told:
            return str(told["content"] if isinstance(told, dict) else told)
    return END
