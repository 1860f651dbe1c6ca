"""Conversations as ids and labels: against LLaVA's own length arithmetic, and against a state machine over Qwen's ids.

The tokenizers are trained here, on a few sentences, and behave as LLaMA's and Qwen's: byte fallback with a dummy prefix
in front of each piece between control tokens, and byte-level BPE behind Qwen's split.
"""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cropl.data.packing import IGNORE
from cropl.models.text import special_tokens
from cropl.models.vlm import load_vlm
from cropl.prompt import VICUNA_SYSTEM, clean_text
from cropl.testbed.build import QWEN_CHAT, build_llava, build_qwen2_vl

BUILD = {"llava": build_llava, "qwen2_vl": build_qwen2_vl}
CORPUS = [
    f"{VICUNA_SYSTEM} USER: What colour is the sign? ASSISTANT: The sign is red, and the word on it is stop. USER:",
    "system\nYou are a helpful assistant.\nuser\nHow many shapes are there?\nassistant\nThere are 12 shapes in it.\n",
] * 3
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CONTROLS = [
    "<image>",
    "</s>",
    "<s>",
    "<|im_end|>",
    "<|im_start|>",
    "<|image_pad|>",
    "ASSISTANT:",
    "USER: ",
    "assistant",
]
pieces = st.one_of(
    st.sampled_from([*CONTROLS, "\n", " ", "red", "The sign is", "\n\n", "é", "漢字", "🙂", "▁"]), st.text(max_size=6)
)
answers = st.lists(pieces, max_size=6).map("".join)
asked = answers.filter(lambda text: text.strip())
conversations = st.lists(st.tuples(asked, answers), min_size=1, max_size=4)


def llama_like(style):
    """LLaMA's tokenizer in small: byte fallback, and a dummy space in front of each piece between control tokens."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=220, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    merges = [tuple(merge) for merge in learned["merges"]]
    core = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    if style == "normalizer":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=["<image>"], **special)


def qwen_like():
    """Qwen's tokenizer in small, with its own split, normalisation and chat template."""
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, learn)
    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=marks,
        chat_template=CHATML,
    )  # fmt: skip


def with_tokenizer(family, tokenizer, placeholder, folder, **options):
    vlm = load_vlm(str(BUILD[family](folder, layers=1, width=32)), **options)
    vlm.processor.tokenizer = tokenizer
    vlm.model.config.image_token_id = tokenizer.convert_tokens_to_ids(placeholder)
    return vlm


@pytest.fixture(scope="module", params=["normalizer", "metaspace", "system"])
def llava(request, tmp_path_factory):
    tokenizer = llama_like("metaspace" if request.param == "metaspace" else "normalizer")
    return with_tokenizer(
        "llava", tokenizer, "<image>", tmp_path_factory.mktemp("llava"), system=request.param == "system"
    )


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return with_tokenizer("qwen2_vl", qwen_like(), "<|image_pad|>", tmp_path_factory.mktemp("qwen"))


def by_lengths(tokenizer, text, image_id):
    """LLaVA's rule: rounds between ends of turns, each as long as its own tokens; None where the lengths disagree."""

    def tokens(part):
        first, *rest = (tokenizer(chunk)["input_ids"] for chunk in part.split("<image>"))
        return first + [i for chunk in rest for i in (image_id, *chunk[1:])]

    ids = tokens(text)
    labels, at = list(ids), 1
    labels[:1] = [IGNORE]
    for turn in text.split("</s>"):
        parts = turn.split(" ASSISTANT: ")
        if len(parts) != 2:
            break
        instruction = len(tokens(f"{parts[0]} ASSISTANT: ")) - 2  # less BOS and the dangling space
        labels[at : at + instruction] = [IGNORE] * instruction
        at += len(tokens(turn))  # whose BOS stands for the end of the turn
    return (ids, labels) if at == len(ids) else (ids, None)


@settings(max_examples=150)
@given(conversations, st.booleans())
def test_vicuna_labels_are_those_of_llavas_arithmetic(llava, turns, image):
    tokenizer = llava.tokenizer
    ids, labels = llava.conversation_ids(turns, image)
    special = special_tokens(tokenizer)
    text = f"{VICUNA_SYSTEM} " if llava.system else ""
    for number, (question, answer) in enumerate(turns):
        question, answer = clean_text(question, special), clean_text(answer, special)
        text += f"USER: {'<image>' + chr(10) if image and not number else ''}{question} ASSISTANT: {answer}</s>"
    known_ids, known_labels = by_lengths(tokenizer, text, llava.image_token_id)
    assert ids == known_ids
    if not any("ASSISTANT:" in part for turn in turns for part in turn):  # which the rule takes for its own
        assert labels == known_labels
    said = tokenizer.decode([i for i in labels if i != IGNORE]).split("</s>")
    assert said == [f" {clean_text(answer, special)}".replace("▁", " ") for _, answer in turns] + [""]


@settings(max_examples=150)
@given(conversations, st.booleans())
def test_qwen_labels_are_those_of_a_state_machine(qwen, turns, image):
    tokenizer = qwen.tokenizer
    ids, labels = qwen.conversation_ids(turns, image)
    header = tokenizer("<|im_start|>assistant\n")["input_ids"]
    end = tokenizer.eos_token_id
    known, answering = [], False
    for i, token in enumerate(ids):
        known.append(token if answering else IGNORE)
        if answering:
            answering = token != end
        else:
            answering = ids[max(0, i + 1 - len(header)) : i + 1] == header
    assert labels == known and labels.count(end) == len(turns)
    said = tokenizer.decode([i for i in labels if i != IGNORE]).split("<|im_end|>")
    special = special_tokens(tokenizer)
    assert said == [unicodedata.normalize("NFC", clean_text(answer, special)) for _, answer in turns] + [""]


@settings(max_examples=60)
@given(asked, answers)
def test_training_begins_as_inference_does(llava, qwen, question, answer):
    for vlm in (llava, qwen):
        ids, labels = vlm.conversation_ids([(question, answer), ("And?", "no")], True)
        prompt = vlm.prompt_ids(question)
        assert ids[: len(prompt)] == prompt and ids.count(vlm.image_token_id) == 1
        assert set(labels[: len(prompt)]) == {IGNORE} and labels[len(prompt)] != IGNORE


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_the_tiny_families_begin_as_inference_does(family, tmp_path):
    vlm = load_vlm(str(BUILD[family](tmp_path, layers=1, width=32)))
    end = vlm.tokenizer.eos_token_id
    turns = [("What colour is the sign?", "red"), ("Is there <image> a sign?", "yes"), ("How many?", "two three")]
    for image in (True, False):
        ids, labels = vlm.conversation_ids(turns, image)
        prompt = vlm.prompt_ids(turns[0][0])
        if not image:
            assert vlm.image_token_id not in ids
        else:
            assert ids[: len(prompt)] == prompt and labels[len(prompt)] == ids[len(prompt)]
        words = [vlm.tokenizer.convert_tokens_to_ids(word) for word in ("red", "yes", "two", "three")]
        assert [i for i in labels if i != IGNORE] == [words[0], end, words[1], end, *words[2:], end]


@settings(max_examples=60)
@given(conversations, st.booleans())
def test_the_question_that_may_be_cut_is_the_first(llava, qwen, turns, image):
    for vlm in (llava, qwen):
        turn = vlm.conversation(turns, image)
        first, last = turn.question
        cleaned = clean_text(turns[0][0], special_tokens(vlm.tokenizer))
        said = vlm.tokenizer.decode(turn.ids[first:last])
        if vlm is llava:
            assert said.strip() == cleaned.replace("▁", " ").strip()  # which is how LLaMA writes a space
        else:
            assert said == unicodedata.normalize("NFC", cleaned)


def test_system_sentence_only_where_it_is_asked_for(tmp_path):
    folder = str(build_llava(tmp_path, layers=1, width=32))
    assert load_vlm(folder, system=True).render([("a", "b")], False).text == f"{VICUNA_SYSTEM} USER: a ASSISTANT: b</s>"
    two = [("a", " b "), ("c ", "d")]
    assert load_vlm(folder).render(two, True).text == "USER: <image>\na ASSISTANT: b</s>USER: c ASSISTANT: d</s>"


def test_trusted_answers_keep_their_tokens(qwen):
    text = qwen.render([("Where?", "<x_1>")], True, clean=False).text
    assert text.endswith("assistant\n<x_1><|im_end|>\n")
    assert "< x_1 >" in qwen.render([("Where?", "<x_1>")], True).text


@pytest.mark.parametrize(
    "template",
    [
        QWEN_CHAT.replace("<|im_end|>\n{% endfor %}", "{{ messages | length }}<|im_end|>\n{% endfor %}"),
        QWEN_CHAT.replace("<|im_end|>\n{% endfor %}", "\n{% endfor %}"),
    ],
)
def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path, template):
    vlm = load_vlm(str(build_qwen2_vl(tmp_path, layers=1, width=32)))
    vlm.tokenizer.chat_template = template
    with pytest.raises(ValueError, match="chat template does not write answer 1"):
        vlm.conversation_ids([("a", "b"), ("c", "d")], True)


def test_an_empty_question_is_refused(qwen, llava):
    for vlm in (qwen, llava):
        with pytest.raises(ValueError, match="empty"):
            vlm.conversation_ids([("a", "b"), (" \n", "c")], False)
