"""Which embeddings act on a picture: those that the request lists, and in A1111's syntax those that its prompts name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipelines.card import ModelCard
from pipelines.prompts import Syntax, read, spans
from service.errors import BadRequest, InvalidValue, shown
from service.option_values import nearest

MAX_EMBEDDINGS = 32  # of one picture


class UnknownEmbedding(BadRequest):
    code = "unknown_embedding"
    about = "The model's workers hold no such embedding, or none that can be used; GET /models lists them."


def embeddings_of(prompt: str, negative_prompt: str, syntax: Syntax, given: Sequence[str], card: ModelCard) -> tuple[str, ...]:
    """Their names, in order. Raises UnknownEmbedding, and InvalidValue for one that stands in neither prompt or twice in the list."""
    known = {info.name: info.refused for info in card.embeddings}
    for name in given:
        if name not in known:
            held = nearest(name, (n for n, why in known.items() if not why))
            raise UnknownEmbedding(f"There is no embedding {shown(name)!r}.{held}", param="embeddings")
    if len(set(given)) < len(given):
        raise InvalidValue("An embedding is named twice.", param="embeddings")
    acting: set[str] = set()
    for param, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        found = _named(text, syntax, known if syntax == "a1111" else given)
        acting |= found
        for name in sorted(found):
            if known[name]:
                where = "embeddings" if name in given else param
                raise UnknownEmbedding(f"The embedding {shown(name)!r} cannot be used: {known[name]}.", param=where)
    if absent := [name for name in given if name not in acting]:
        why = known[absent[0]] or "it stands in neither prompt: it acts where its name is"
        kind = UnknownEmbedding if known[absent[0]] else InvalidValue
        raise kind(f"The embedding {shown(absent[0])!r} cannot be used: {why}.", param="embeddings")
    if len(acting) > MAX_EMBEDDINGS:
        raise InvalidValue(f"At most {MAX_EMBEDDINGS} embeddings act on a picture.", param="prompt")
    return tuple(sorted(acting))


def _named(text: str, syntax: Syntax, names: Iterable[str]) -> set[str]:
    if not (names := list(names)):
        return set()
    parts = [text] if syntax == "plain" else [part.text for section in read(text) for part in section]
    return {name for part in parts for _, name in spans(part, names) if name}


def without(text: str, names: Sequence[str]) -> str:
    """A text without what stands for learned vectors."""
    return " ".join(part for part, name in spans(text, names) if not name)


def vector_hashes(names: Sequence[str], card: ModelCard) -> list[str]:
    """Of the files that act: another file under the same name draws another picture."""
    hashes = {info.name: info.hash for info in card.embeddings}
    return [hashes.get(name, "") for name in names]
