"""Prompts and the region codec: round trips, other models' notations, and text that is no region."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropl.grid import GRID, Region
from cropl.prompt import VICUNA_SYSTEM, RegionCodec, clean_question, clean_text, llava_prompt, localizer_prompt, vicuna

blocks = st.integers(0, GRID - 1)
VPT = "<|region_token_start|><|x_2|><|y_1|><|x_5|><|y_2|><|region_token_end|>"


@given(blocks, blocks, blocks, blocks, st.sampled_from(["tokens", "digits"]))
def test_round_trip(a: int, b: int, c: int, d: int, style: str) -> None:
    region = Region(min(a, b), min(c, d), max(a, b), max(c, d))
    text = RegionCodec(style).encode(region)  # type: ignore[arg-type]
    for reader in (RegionCodec("tokens"), RegionCodec("digits")):
        assert reader.decode(text) == region
        assert reader.decode(f" {text}<|im_end|>\n") == region


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (VPT, Region(2, 1, 5, 2)),
        ("<x_2> <y_1> <x_5> <y_2>.", Region(2, 1, 5, 2)),
        ("It is at <x_2><y_1><x_5><y_2>, I think", Region(2, 1, 5, 2)),
        ("<x_2><y_1><x_9><y_12>", Region(2, 1, 7, 7)),
        ("[2, 1, 5, 2]", Region(2, 1, 5, 2)),
        ("2,1,5,2.</s>", Region(2, 1, 5, 2)),
        ("02 1 5 0002", Region(2, 1, 5, 2)),
        ("0 0 " + "9" * 5000 + " 7", Region(0, 0, 7, 7)),
    ],
)
def test_other_notations(text: str, expected: Region) -> None:
    assert RegionCodec().decode(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "the dog on the left",
        "<x_5><y_1><x_2><y_2>.",
        "<x_1><y_5><x_2><y_2>.",
        "<y_1><x_2><y_3><x_4>",
        "<x_1><y_2><x_3>",
        "<x_1><y_2><x_3><y_4><x_5>",
        "<x_1><y_2> and <x_3><y_4>",
        "<x_-1><y_2><x_3><y_4>",
        "<x_1><y_2><x_3><y_b>",
        "5 1 2 2",
        "1 2 3",
        "1 2 3 4 5",
        "0.1 0.2 0.3 0.4",
        "-1 2 3 4",
        "1234",
        "there are 1 2 3 4 dogs",
        "١ ٢ ٣ ٤",
        None,
        7,
    ],
)
def test_what_is_no_region_is_none(text: object) -> None:
    assert RegionCodec().decode(text) is None  # type: ignore[arg-type]


@given(st.text(alphabet=st.sampled_from("<>|xy_0123456789,. []()/sim\n"), max_size=60))
def test_decoding_never_raises(text: str) -> None:
    region = RegionCodec().decode(text)
    assert region is None or isinstance(region, Region)


def test_added_tokens() -> None:
    tokens = RegionCodec().added_tokens
    assert (
        len(set(tokens)) == 16 and tokens[0] == "<x_0>" and tokens[7:9] == ["<x_7>", "<y_0>"] and tokens[15] == "<y_7>"
    )
    assert RegionCodec("digits").added_tokens == []
    with pytest.raises(ValueError, match="style"):
        RegionCodec("words")  # type: ignore[arg-type]


def test_templates() -> None:
    question = "What colour is the sign?"
    assert localizer_prompt(question) == (
        "What colour is the sign? Please identify the region that can help you answer the question better."
    )
    assert llava_prompt(question) == "USER: <image>\nWhat colour is the sign? ASSISTANT:"
    assert llava_prompt(question, system=True) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nWhat colour is the sign? ASSISTANT:"
    )


def test_vicuna_conversations() -> None:
    made = vicuna([("What?", " red "), ("And </s> now?", "[INST] blue <image>")], special_tokens=iter(["[INST]"]))
    assert made.text == (
        "USER: <image>\nWhat? ASSISTANT: red</s>USER: And < /s > now? ASSISTANT: [ INST] blue < image ></s>"
    )
    assert [made.text[start:end] for start, end in made.answers] == [" red</s>", " [ INST] blue < image ></s>"]
    assert made.text[slice(*made.question)] == "What?"
    text = vicuna([("a", "<x_1>")], image=False, system=True, end="<|e|>", clean=False)
    assert text.text == f"{VICUNA_SYSTEM} USER: a ASSISTANT: <x_1><|e|>"
    with pytest.raises(ValueError, match="empty"):
        vicuna([("a", "b"), (" ", "c")])


@pytest.mark.parametrize("empty", ["", "  \n\t"])
def test_an_empty_question_is_refused(empty: str) -> None:
    for function in (clean_question, localizer_prompt, llava_prompt):
        with pytest.raises(ValueError, match="empty"):
            function(empty)


def test_a_question_must_be_text() -> None:
    for function in (clean_question, clean_text):
        with pytest.raises(ValueError, match="text"):
            function(None)  # type: ignore[arg-type]
    assert clean_text(" \n") == ""


CONTROLS = ["<image>", "<|im_end|>", "<|image_pad|>", "</s>", "<s>", "<x_3>", "<|x_3|>", "<pad>", "<unk>"]


@given(st.lists(st.sampled_from([*CONTROLS, "<", ">", "|", "im", " ", "a"]), min_size=1, max_size=12).map("".join))
def test_control_tokens_lose_their_meaning(question: str) -> None:
    if not question.strip():
        return
    cleaned = clean_question(question)
    assert not any(token in cleaned for token in CONTROLS)
    assert cleaned.replace(" ", "") == question.replace(" ", "")


def test_special_tokens_of_a_tokenizer() -> None:
    assert clean_question("a [INST] b [INST]c", ["[INST]", "<mask>", ""]) == "a [ INST] b [ INST]c"
    assert clean_question("is 3 < 4 and <b> bold?") == "is 3 < 4 and <b> bold?"
