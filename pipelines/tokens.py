"""CLIP's tokenizer without transformers: the same ids from the same files, through the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Pieces
from tokenizers.models import BPE

from pipelines.checkpoint_error import CheckpointError
from pipelines.prompt_chunks import Marks
from pipelines.weight_files import read_object, read_text

MARKS = ("bos_token", "eos_token", "unk_token", "pad_token")
START, END, COMMA = "<|startoftext|>", "<|endoftext|>", ",</w>"
PARTS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """A text -> ids of its tokens; and what must be known of them."""

    def __init__(self, folder: Path, length: int) -> None:
        """Raises CheckpointError where there is neither tokenizer.json nor vocab.json and merges.txt, or they say nothing."""
        self._pieces = _read(folder)
        self._pieces.no_truncation()
        self._pieces.no_padding()
        start, end, pad = (_id(self._pieces, token) for token in (START, END, _marks(folder).get("pad_token", END)))
        self.marks = Marks(start, end, pad, self._pieces.token_to_id(COMMA), length)

    def pieces(self, text: str) -> list[int]:
        """The ids of a text's tokens, without start and end."""
        found: list[int] = self._pieces.encode(text, add_special_tokens=False).ids
        return found


def check_tokenizer(folder: Path, words: int) -> None:
    """Raises CheckpointError for one that no backend can read, or that knows words beyond the `words` of its text encoder."""
    tokens = Tokenizer(folder, 0)
    for token in _marks(folder).values():
        _id(tokens._pieces, token)
    try:
        beside = read_object(folder / "added_tokens.json") if (folder / "added_tokens.json").exists() else {}
    except ValueError as error:
        raise _unread(folder, error) from error
    numbers = (tokens._pieces.get_vocab() | beside).values()
    if not all(type(number) is int and 0 <= number < words for number in numbers):
        raise CheckpointError(f"{folder.name} has tokens of other numbers than the {words} that its text encoder knows", "bad_config")


def _read(folder: Path) -> Pieces:
    whole = folder / "tokenizer.json"
    try:
        return Pieces.from_str(read_text(whole)) if whole.exists() else _from_merges(folder)
    except FileNotFoundError as error:
        message = f"{folder.name}/{Path(str(error)).name} is missing: it is not a whole checkpoint in diffusers layout"
        raise CheckpointError(message, "not_diffusers") from error
    except Exception as error:  # the library raises nothing narrower
        raise _unread(folder, error) from error


def _unread(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder.name} cannot be read: {type(error).__name__} {error}", "bad_config")


def _id(pieces: Pieces, token: str) -> int:
    found: int | None = pieces.token_to_id(token)
    if found is None:
        raise CheckpointError(f"the tokenizer has no token {token}", "bad_config")
    return found


def _from_merges(folder: Path) -> Pieces:
    """The older two files, put together as transformers does."""
    vocab: dict[str, int] = read_object(folder / "vocab.json")
    lines = read_text(folder / "merges.txt").splitlines()
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


def _marks(folder: Path) -> dict[str, str]:
    """The tokens of the marks that the files beside the tokenizer name."""
    found: dict[str, str] = {}
    try:
        for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the later one has the last word
            told: Mapping[str, Any] = read_object(folder / name) if (folder / name).exists() else {}
            for mark in MARKS:
                if token := told.get(mark):
                    found[mark] = token["content"] if isinstance(token, dict) else token
                    if not isinstance(found[mark], str):
                        raise TypeError(f"{mark} is no text")
    except (ValueError, KeyError, TypeError) as error:
        raise _unread(folder, error) from error
    return found
