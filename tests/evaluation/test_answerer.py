"""The whole job as one object: the same answers as step by step, on stock models of `transformers`."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

from cropl import ILP, PLC, Answerer, FastV, Localizer, Region, VisionZip, load_vlm, pruned
from cropl.evaluation import answerer as module
from cropl.evaluation.pipeline import items
from cropl.evaluation.pipeline.answer import AnswerStage
from cropl.pruning import Dense, keep_mask
from cropl.testbed.samples import samples as scenes
from cropl.testbed.weights import path


@pytest.fixture(scope="module")
def asked():
    made = scenes("test", 5)
    return [sample.image for sample in made], [sample.question for sample in made]


@pytest.fixture(scope="module")
def vlm():
    return load_vlm("testbed:llava")


@pytest.fixture(scope="module")
def localizer():
    return Localizer.from_pretrained("testbed:localizer")


def by_hand(vlm, localizer, images, questions, budget):
    answers = []
    for image, question in zip(images, questions):
        (region,) = localizer.locate([image], [question])
        inputs = vlm.inputs([image], [question])
        keep = keep_mask(region, inputs.grids[0], budget)
        with pruned(vlm, ILP(layer=1), keep=[keep]) as patch:
            answers.append((vlm.generate(inputs)[0], region, int(patch.kept_B[0])))
    return answers


def test_it_is_what_one_would_do_by_hand(vlm, localizer, asked):
    images, questions = asked
    answers = Answerer(vlm, None, localizer, ILP(layer=1), budget=64, batch_size=2)(images, questions)
    assert [(one.text, one.region, one.kept) for one in answers] == by_hand(vlm, localizer, images, questions, 64)
    assert str(answers[0]) == answers[0].text and {one.total for one in answers} == {576}
    assert all(one.seconds > 0 for one in answers)


def processor_of(name):
    if name == "llava":
        return AutoProcessor.from_pretrained(path(name))
    # `AutoProcessor` of this family needs torchvision, for videos.
    images = AutoImageProcessor.from_pretrained(path(name), backend="pil")
    return SimpleNamespace(image_processor=images, tokenizer=AutoTokenizer.from_pretrained(path(name)))


@pytest.mark.parametrize(
    ("kind", "name"), [(LlavaForConditionalGeneration, "llava"), (Qwen2VLForConditionalGeneration, "qwen2_vl")]
)
def test_a_stock_model_with_its_own_processor(kind, name, localizer, asked):
    images, questions = asked
    model = kind.from_pretrained(path(name)).eval()
    answers = Answerer(model, processor_of(name), localizer, ILP(layer=1))(images, questions)
    same = Answerer(f"testbed:{name}", localizer="testbed:localizer", method=ILP(layer=1))(images, questions)
    assert [(one.text, one.region, one.kept) for one in answers] == [(one.text, one.region, one.kept) for one in same]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_images_may_be_files_and_bytes(vlm, localizer, asked, tmp_path):
    image, question = asked[0][0], asked[1][0]
    image.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    answerer = Answerer(vlm, localizer=localizer, budget=0.25)
    answers = answerer([image, tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue()], [question] * 4)
    assert len({(one.text, one.region, one.kept) for one in answers}) == 1 and answers[0].kept == 144


def test_regions_of_ones_own_and_methods_without_any(vlm, asked):
    images, questions = asked
    region = Region(0, 0, 3, 3)
    told = Answerer(vlm)(images, questions, regions=[region] * 5)
    assert {one.region for one in told} == {region} and max(one.kept for one in told) < 576
    fast = Answerer(vlm, method=FastV(tokens=64, layer=1))(images, questions)
    assert {one.kept for one in fast} == {64} and fast[0].region is None
    zipped = Answerer(vlm, method=VisionZip(tokens=64))(images[:2], questions[:2])
    assert {one.kept for one in zipped} == {64}
    dense = Answerer(vlm, method=Dense())(images, questions)
    assert [one.text for one in dense] == [vlm.generate(vlm.inputs([i], [q]))[0] for i, q in zip(images, questions)]


def test_the_localizer_sees_no_more_than_a_batch(vlm, localizer, asked, monkeypatch):
    images, questions = asked
    whole = Answerer(vlm, localizer=localizer, budget=64)(images, questions)
    sizes, locate = [], localizer.locate
    monkeypatch.setattr(
        localizer, "locate", lambda pictures, asked: sizes.append(len(asked)) or locate(pictures, asked)
    )
    answers = Answerer(vlm, localizer=localizer, budget=64, batch_size=2)(images, questions)
    assert sizes == [2, 2, 1] and [str(one) for one in answers] == [str(one) for one in whole]


def test_what_can_be_listed_is_taken(vlm, asked):
    """Generators, arrays, unions of regions, None for everything, numbers of numpy."""
    images, questions = asked
    places = np.empty(5, dtype=object)
    places[:] = [Region(0, 0, 3, 3), None, [Region(0, 0, 1, 1), Region(6, 6, 7, 7)], Region.full(), Region(2, 2, 2, 2)]
    answers = Answerer(vlm)((image for image in images), iter(questions), places)
    assert [one.region for one in answers] == list(places)
    assert answers[1].kept == answers[3].kept == 576 > answers[2].kept > answers[4].kept
    assert {one.kept for one in Answerer(vlm, budget=np.int64(64))(images, questions, [Region.full()] * 5)} == {64}
    assert Answerer(vlm)([], [], []) == []


def test_nothing_is_answered_where_a_question_is_wrong(vlm, asked, monkeypatch):
    images, questions = asked
    monkeypatch.setattr(module, "HELD", 1)
    monkeypatch.setattr(vlm, "generate", lambda *_, **__: pytest.fail("it was answered"))
    answerer, regions = Answerer(vlm, batch_size=1), [Region.full()] * 5
    for pictures, texts, message in (
        (images, [*questions[:4], " "], "question 4: the question is empty"),
        ([*images[:4], 7], questions, "question 4: int is no image"),
        (images, {1, 2}, "questions: one set by itself"),
        (images, None, "questions: one NoneType by itself"),
    ):
        with pytest.raises(ValueError, match=message):
            answerer(pictures, texts, regions)
    with pytest.raises(ValueError, match="regions: one Region by itself"):
        answerer(images, questions, Region.full())
    with pytest.raises(ValueError, match="the localizer's regions: one NoneType by itself"):
        Answerer(vlm, localizer=SimpleNamespace(locate=lambda images, questions: None))(images, questions)
    with pytest.raises(ValueError, match=r"question 0: 'left' is no region"):
        Answerer(vlm, localizer=SimpleNamespace(locate=lambda images, questions: ["left"] * len(images)))(
            images, questions
        )


def test_an_image_is_decoded_once_and_few_are_held(vlm, localizer, asked, tmp_path, monkeypatch):
    images, questions = asked
    files = [tmp_path / f"{place}.png" for place in range(len(images))]
    for image, file in zip(images, files):
        image.save(file)
    opened, held, load, answer = [], [], items.load_image, AnswerStage.__call__
    monkeypatch.setattr(items, "load_image", lambda file: opened.append(file) or load(file))
    monkeypatch.setattr(
        AnswerStage, "__call__", lambda self, *given: held.append(len(given[0])) or answer(self, *given)
    )
    monkeypatch.setattr(module, "HELD", 2)
    answerer = Answerer(vlm, localizer=localizer, budget=64, batch_size=1)
    answers = answerer(files, questions)
    assert opened == files and held == [2, 2, 1]
    assert [str(one) for one in answers] == [
        str(one) for one in Answerer(vlm, localizer=localizer, budget=64)(images, questions)
    ]
    files[3].write_bytes(b"no image")
    with pytest.raises(ValueError, match="question 3: .*3.png"):
        answerer(files, questions)


def test_plc(localizer, asked):
    images, questions = asked
    answers = Answerer("testbed:plc", localizer=localizer, method=PLC.from_pretrained("testbed:plc"))(images, questions)
    assert {one.kept for one in answers} == {68}


def test_what_is_wrong_is_told(vlm, localizer, asked, tmp_path):
    images, questions = asked
    with pytest.raises(ValueError, match="needs regions: give a localizer"):
        Answerer(vlm)(images, questions)
    with pytest.raises(ValueError, match="takes no regions: leave the localizer out"):
        Answerer(vlm, localizer=localizer, method=FastV(tokens=64))
    with pytest.raises(ValueError, match="takes no regions"):
        Answerer(vlm, method=FastV(tokens=64))(images, questions, regions=[Region.full()] * 5)
    with pytest.raises(ValueError, match="takes no regions, which a budget"):
        Answerer(vlm, method=FastV(tokens=64), budget=32)
    with pytest.raises(ValueError, match="without its processor"):
        Answerer(vlm.model, localizer=localizer)
    with pytest.raises(ValueError, match="has its processor already"):
        Answerer(vlm, vlm.processor)
    with pytest.raises(ValueError, match="is no localizer"):
        Answerer(vlm, localizer=object())
    with pytest.raises(ValueError, match="one model: load it twice"):
        Answerer(localizer.vlm, localizer=localizer)
    with pytest.raises(ValueError, match="its own processor"):
        Answerer("testbed:llava", object())
    with pytest.raises(ValueError, match="batch_size=0"):
        Answerer(vlm, localizer=localizer, batch_size=0)
    with pytest.raises(ValueError, match="method must be an InnerLLM"):
        Answerer(vlm, localizer=localizer, method="ilp")
    for wrong in (0, True, "2"):
        with pytest.raises(ValueError, match=f"max_new_tokens={wrong!r}"):
            Answerer(vlm, localizer=localizer, max_new_tokens=wrong)
    for budget in (0, 1.5, "64", True):
        with pytest.raises(ValueError, match=f"budget {budget!r}"):
            Answerer(vlm, localizer=localizer, budget=budget)
    for factor in (0, float("inf"), "2"):
        with pytest.raises(ValueError, match=f"scale factor {factor!r}"):
            Answerer(vlm, localizer=localizer, factor=factor)
    with pytest.raises(ValueError, match=r"question 0: \(1, 1, 2, 2\) is no region: give Region\("):
        Answerer(vlm)(images[:1], questions[:1], regions=[(1, 1, 2, 2)])
    with pytest.raises(ValueError, match="question 1: "):
        Answerer(vlm, localizer=localizer)([images[0], b"no image"], questions[:2])
    answerer = Answerer(vlm, localizer=localizer)
    for wrong in ((images[0], questions), (images, questions[0]), (images[:2], questions)):
        with pytest.raises(ValueError, match="give"):
            answerer(*wrong)
    with pytest.raises(ValueError, match="question 1: the question is empty"):
        answerer(images[:2], ["Where?", "  "])
    with pytest.raises(ValueError, match="question 0: .*nowhere.png"):
        Answerer(vlm)([tmp_path / "nowhere.png"], ["Where?"], regions=[Region.full()])
    assert answerer([], []) == []
