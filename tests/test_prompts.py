"""A1111's syntax of prompts: its documented results, what is refused, and what the gateway makes of it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.prompts import PromptError, PromptUnsupported, read, words
from service import drafts
from service.errors import InvalidValue, NotSupported
from service.settings import Settings
from tests.cards import card

DOCUMENTED = {  # in A1111's own examples
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    "\\(literal\\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
        ("sky", 1.4641000000000006), (".", 1.1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("prompt", DOCUMENTED)
def test_documented_results(prompt: str) -> None:
    [section] = read(prompt)
    assert [(part.text, part.weight) for part in section] == DOCUMENTED[prompt]


@pytest.mark.parametrize(("prompt", "wanted"), [
    ("", [[]]),
    ("[less]", [[("less", 1 / 1.1)]]),
    ("((word))", [[("word", 1.1 * 1.1)]]),
    ("(word: 1.3 )", [[("word", 1.3)]]),
    ("(word:-1)", [[("word", -1.0)]]),
    ("word:1.3)", [[("word:1.3)", 1.0)]]),
    ("(a:b)", [[("a:b", 1.1)]]),
    ("a) b] c", [[("a) b] c", 1.0)]]),
    ("back\\slash \\\\", [[("backslash \\", 1.0)]]),
    ("a (b [c) d]", [[("a ", 1.0), ("b ", 1.1), ("c", 1.1 / 1.1), (" d", 1 / 1.1)]]),
    ("a cat BREAK (b:1.2)", [[("a cat", 1.0)], [("b", 1.2)]]),
    ("BREAK a BREAK", [[], [("a", 1.0)], []]),
    ("(a BREAK b:1.2)", [[("a", 1.2)], [("b", 1.2)]]),
    ("BREAKFAST", [[("BREAKFAST", 1.0)]]),
    ("a # (remark\nb", [[("a \nb", 1.0)]]),
    ("(a|b) and [a\\|b \\]", [[("a|b", 1.1), (" and ", 1.0), ("a|b ]", 1 / 1.1)]]),
    ("[portrait: a cat]", [[("portrait: a cat", 1 / 1.1)]]),
    ("[(cat:1.2) dog]", [[("cat", 1.2 / 1.1), (" dog", 1 / 1.1)]]),
])  # fmt: skip
def test_what_signs_mean(prompt: str, wanted: list[list[tuple[str, float]]]) -> None:
    found = [[(part.text, part.weight) for part in section] for section in read(prompt)]
    assert [[text for text, _ in section] for section in found] == [[text for text, _ in section] for section in wanted]
    assert [w for s in found for _, w in s] == pytest.approx([w for s in wanted for _, w in s], rel=1e-12)


@pytest.mark.parametrize("prompt", [
    "[cat:dog:0.5]", "[cat:0.5]", "[cat::10]", "[:cat:.5 ]", "[cat|dog]", "a [(big:1.2) cat|dog]", "a [[cat]|dog] on wood",
    "a cat AND a dog", "a cat <hypernet:fur:0.8>",
])  # fmt: skip
def test_what_is_not_done_is_refused(prompt: str) -> None:
    with pytest.raises(PromptUnsupported) as refused:
        read(prompt)
    assert "cat" not in str(refused.value)
    for name in ("prompt", "negative_prompt"):
        with pytest.raises(NotSupported) as answer:
            drafts.resolve(drafts.Draft(**{"prompt": "", name: prompt}, prompt_syntax="a1111"), card(), Settings())
        assert answer.value.param == name and "cat" not in answer.value.message
    assert drafts.resolve(drafts.Draft(prompt=prompt), card(), Settings()).params.prompt == prompt, "plain: text"


@pytest.mark.parametrize("prompt", ["(a:1.2.3)", "(a:.)", "(a:101)", "((((a:99))))", "(a:-1000)", "(" * 65, "([" * 33])
def test_weights_that_are_none(prompt: str) -> None:
    with pytest.raises(PromptError):
        read(prompt)
    with pytest.raises(InvalidValue):
        drafts.resolve(drafts.Draft(prompt=prompt, prompt_syntax="a1111"), card(), Settings())


@given(st.text(alphabet="()[]:\\|.1aA BREKND#\n<>", max_size=60))
def test_any_text_is_read_or_refused(prompt: str) -> None:
    try:
        sections = read(prompt)
    except PromptError:
        return
    for section in sections:
        assert all(part.text for part in section)
        assert all(one.weight != two.weight for one, two in itertools.pairwise(section))


def test_signs_are_no_unknown_words() -> None:
    asked = drafts.Draft(prompt="a (red:1.3) apple BREAK on [blue] background, (zebra)", prompt_syntax="a1111")
    [warning] = drafts.resolve(asked, card(), Settings()).warnings
    assert warning.code == "unknown_words" and warning.message.endswith(": zebra.")
    assert words("a (red:1.3) BREAK", "a1111") == "a red " and words("a (red:1.3) BREAK", "plain") == "a (red:1.3) BREAK"


@pytest.mark.parametrize(("prompt", "named"), [
    ("5 red apple", "5"), ("a red apple2", "apple2"), ("a red apple 🚀 a 🐶", "🚀, 🐶"), ("a red apple – on a (blue) background!", ""),
    ("a car ©", "©"),
])  # fmt: skip
def test_numbers_and_emoji_are_words_too(prompt: str, named: str) -> None:
    told = drafts.resolve(drafts.Draft(prompt=prompt), card(), Settings()).warnings
    assert [warning.message.partition(": ")[2] for warning in told] == ([f"{named}."] if named else [])


def test_a_worker_that_knows_no_signs_is_not_asked_for_them() -> None:
    with pytest.raises(NotSupported, match="plain prompts alone"):
        drafts.resolve(drafts.Draft(prompt="a", prompt_syntax="a1111"), card(prompt_syntaxes=("plain",)), Settings())
    old = card().to_dict()
    del old["prompt_syntaxes"]
    assert type(card()).from_dict(old).prompt_syntaxes == ("plain",)
