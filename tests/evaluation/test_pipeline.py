"""Ahead-of-time localization in a thread: serial results in order, one bad sample never stops the rest, no leaks."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cropl.budget import apply_factor
from cropl.errors import RunError
from cropl.evaluation.pipeline import Pipeline, pipeline
from cropl.evaluation.pipeline.items import LONGEST, Asked, Failed, isolated
from cropl.evaluation.pipeline.stage import STRIKES, ThreadStage
from cropl.models.localizer import Localizer
from cropl.pruning import ILP, pruned
from tests import families
from tests.evaluation.stages import PICTURE, Answers, Told, region_of


def run(pairs, batch_size=2, window=1, ahead=2, work=lambda questions: None, locator=None, **options):
    stage = ThreadStage(locator or Told(), **options)
    return Pipeline(pairs, stage, Answers(batch_size, work), batch_size, window, ahead)


def pairs_of(*questions):
    return [(PICTURE, question) for question in questions]


def alive():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cropl ")]


KINDS = {
    "fine": ("fine", True, True),
    "crowd": ("crowd", True, True),
    "lost": ("lost", False, True),
    "mute": ("mute", True, False),
    "missing": (Path("/no/such/picture.jpg"), False, False),
    "damaged": (b"\xff\xd8\xff\xe0 no picture", False, False),
    "unread": (ValueError("line 3 is no JSON"), False, False),
    "no pair": (None, False, False),
    "no question": ("", False, False),
    "no image": (3.5, False, False),
}
"""What is wrong with a sample: word or image, whether it has a region, whether it has an answer."""


def sample(kind, index):
    what = KINDS[kind][0]
    if what is None:
        return 17
    if what == "":
        return PICTURE, "  ", index
    if isinstance(what, str):
        return PICTURE, f"{what} {index}", index
    return what, f"fine {index}", index


@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), max_size=14),
    batch_size=st.integers(1, 5),
    window=st.integers(1, 3),
    ahead=st.integers(1, 3),
)
def test_bad_samples_keep_their_place_and_harm_no_other(kinds, batch_size, window, ahead):
    given_pairs = [sample(kind, index) for index, kind in enumerate(kinds)]
    stream = run(iter(given_pairs), batch_size, window, ahead)
    results = list(stream)
    assert [result.pair for result in results] == given_pairs
    for kind, result in zip(kinds, results, strict=True):
        _, located, answered = KINDS[kind]
        assert (result.region is not None, result.answer is not None) == (located, answered), kind
        assert (result.error is None) == answered
        assert (result.fallback is not None) == (answered and not located)
        if answered:
            assert result.answer == result.pair[1].upper()
            assert result.kept == (region_of(result.pair[1]).area if located else 64)
    assert stream.done == len(kinds)
    assert stream.errors == sum(not KINDS[kind][2] for kind in kinds)
    assert stream.fallbacks == kinds.count("lost")


def test_reasons_are_told():
    kinds = ["lost", "mute", "missing", "damaged", "unread", "no pair", "no question", "no image"]
    results = run([sample(kind, 0) for kind in kinds])
    told = {kind: result.fallback or result.error for kind, result in zip(kinds, results)}
    assert told["lost"] == "OutOfMemoryError: no memory is left" and told["mute"] == "RuntimeError: nothing to say"
    assert "no such file" in told["missing"] and "Truncated File Read" in told["damaged"]
    assert told["unread"] == "line 3 is no JSON" and "int is no pair" in told["no pair"]
    assert "question is empty" in told["no question"] and "float is no image" in told["no image"]


def test_a_picture_that_is_still_a_damaged_file(tmp_path):
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 80).convert("RGB").save(whole)
    half = tmp_path / "half.png"
    half.write_bytes(whole.read_bytes()[:3000])
    good, bad = run([(Image.open(whole), "fine 1"), (Image.open(half), "fine 2")])
    assert good.answer == "FINE 1" and bad.answer is None and "truncated" in (bad.error or "")


def test_isolated_bounds_reasons_and_counts():
    assert isolated(lambda batch: batch[1:], [1]) == [Failed("0 results for 1 questions")]
    assert isolated(lambda batch: batch, []) == []
    (failed,) = isolated(lambda batch: [][batch[0]], [1])
    assert isinstance(failed, Failed) and failed.reason.startswith("IndexError: ")

    def long(batch):
        raise ValueError("x" * 1000)

    (failed,) = isolated(long, [1])
    assert isinstance(failed, Failed) and len(failed.reason) == LONGEST


def test_a_picture_cannot_change_once_it_is_read():
    frame = Image.new("RGB", (8, 8), "red")
    asked = Asked.of((frame, "what"))
    frame.paste("blue", (0, 0, 8, 8))
    picture = asked.picture()
    assert isinstance(picture, Image.Image) and picture.getpixel((0, 0)) == (255, 0, 0)


def test_the_localizer_works_while_a_batch_is_answered():
    locator, seen = Told(), []

    def work(questions):
        deadline = time.monotonic() + 20
        while len(locator.batches) < min(len(seen) + 2, 3) and time.monotonic() < deadline:
            time.sleep(0.001)
        seen.append(len(locator.batches))

    list(run(pairs_of(*(f"fine {i}" for i in range(6))), batch_size=2, work=work, locator=locator, ahead=1))
    assert seen[0] >= 2 and seen[1] == 3  # before its own answer was out, the next batch was located
    assert locator.batches == [[f"fine {i}" for i in pair] for pair in ((0, 1), (2, 3), (4, 5))]


@pytest.mark.parametrize(("batch_size", "window", "ahead"), [(1, 1, 1), (3, 1, 2), (2, 3, 2)])
def test_an_endless_stream_is_read_no_further_than_it_may(batch_size, window, ahead):
    read = []

    def stream():
        for number in itertools.count():
            read.append(number)
            yield PICTURE, f"fine {number}"

    # A window at hand, those ahead of it, and a batch that waits for its turn.
    bound = batch_size * (window + ahead * window + 1)
    with run(stream(), batch_size, window, ahead) as results:
        for taken, result in enumerate(itertools.islice(results, 40)):
            assert result.pair[1] == f"fine {taken}"
            assert len(read) <= taken + bound
        time.sleep(0.05)
        assert len(read) <= 39 + bound
    time.sleep(0.05)
    before = len(read)
    time.sleep(0.05)
    assert len(read) == before


def test_what_the_stream_raises_comes_after_what_came_before():
    def stream():
        yield from pairs_of("fine 1", "fine 2", "fine 3")
        raise KeyError("the camera is gone")

    results, got = run(stream()), []
    with pytest.raises(KeyError, match="camera"):
        for result in results:
            got.append(result.answer)
    assert got == ["FINE 1", "FINE 2", "FINE 3"]
    assert next(results, None) is None
    with pytest.raises(TypeError, match="not iterable"):
        next(run(5))


@pytest.mark.parametrize("end", ["close", "break", "interrupt"])
def test_nothing_runs_on(end):
    def work(questions):
        if end == "interrupt" and "fine 6" in questions:
            raise KeyboardInterrupt

    results = run(((PICTURE, f"fine {i}") for i in itertools.count()), work=work)
    got = 0
    try:
        for _ in results:
            got += 1
            if end != "interrupt" and got == 5:
                break
        if end == "close":
            results.close()
            results.close()
            assert list(results) == []
    except KeyboardInterrupt:
        assert end == "interrupt" and got == 6
    del results
    gc.collect()
    deadline = time.monotonic() + 10
    while alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive()


def test_a_sample_that_takes_too_long_keeps_every_token():
    questions = ["fine 1", "slow 2", "fine 3", "fine 4"]
    results = list(run(pairs_of(*questions), batch_size=1, timeout=0.4))
    assert [result.answer for result in results] == [question.upper() for question in questions]
    assert results[0].fallback is None and results[1].fallback == "no region within 0.4 s"
    assert results[3].region == region_of("fine 4")  # by then it had recovered


def test_a_silent_localizer_is_given_up(caplog):
    results = run(pairs_of(*["slow 0"] * 40), batch_size=8, timeout=0.05)
    began = time.monotonic()
    told = [result.fallback for result in results]
    assert time.monotonic() - began < 10
    assert told[: 8 * STRIKES] == ["no region within 0.05 s"] * 8 * STRIKES
    assert set(told[8 * STRIKES :]) == {"the localizer said nothing for 3 times 0.05 s"}
    assert "every token is kept" in caplog.text and results.fallbacks == 40
    with pytest.raises(RunError, match="said nothing"):
        list(run(pairs_of(*["slow 0"] * 8), batch_size=2, timeout=0.05, raises=True))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_localizer_that_ends_by_itself():
    results = list(run(pairs_of("fine 0", "exit 1", "fine 2", "fine 3"), batch_size=1))
    assert [result.answer for result in results] == ["FINE 0", "EXIT 1", "FINE 2", "FINE 3"]
    assert results[0].region is not None
    assert [result.fallback for result in results[1:]] == ["the localizer's thread ended"] * 3
    with pytest.raises(RunError, match="thread ended"):
        list(run(pairs_of("exit 1"), raises=True))


def test_a_stage_may_be_closed_by_its_own_thread():
    """As the garbage collector does, which runs wherever memory is asked for."""
    closed = []

    class Closing(Told):
        def locate(self, images, questions):
            closed.append(stage.close())
            return super().locate(images, questions)

    stage = ThreadStage(Closing())
    stage.send(0, [Asked(Image.new("RGB", (8, 8)), "fine 0")])
    stage._thread.join(timeout=10)
    assert closed == [None] and not stage._thread.is_alive()


# Real models.


@pytest.fixture(scope="module")
def vlm():
    return families.llava()


@pytest.fixture(scope="module")
def localizer(tiny_localizer):
    return Localizer.from_pretrained(tiny_localizer)


def questions(count):
    pictures = families.pictures(count, seed=3)
    return [(picture, families.QUESTIONS[i % 3]) for i, picture in enumerate(pictures)]


def serially(vlm, region, picture, question, keep=None):
    """One question alone: the answer and the tokens kept."""
    inputs = vlm.inputs([picture], [question])
    wish = {"regions": [region], "grids": inputs.grids} if keep is None else {"keep": [keep]}
    with pruned(vlm, ILP(layer=1), **wish) as patch:
        text = vlm.generate(inputs, max_new_tokens=3, do_sample=False)[0]
    return text, int(patch.kept_B[0])


@pytest.mark.parametrize(("batch_size", "window"), [(1, 1), (3, 1), (2, 3)])
def test_results_are_the_serial_ones(vlm, localizer, batch_size, window):
    asked = questions(7)
    results = list(pipeline(asked, localizer, vlm, batch_size=batch_size, window=window, max_new_tokens=3))
    for (picture, question), result in zip(asked, results, strict=True):
        (region,) = localizer.locate([picture], [question])
        assert result.region == region
        assert (result.answer, result.kept) == serially(vlm, region, picture, question)
        assert result.total == 64 and result.localize_seconds > 0 and result.answer_seconds > 0


def test_budget_and_factor(vlm):
    asked = questions(4)
    results = list(pipeline(asked, Told(), vlm, ILP(layer=2), budget=20, batch_size=4, max_new_tokens=2))
    assert [result.kept for result in results] == [20] * 4
    scaled = pipeline(asked, Told(), vlm, factor=0.7, batch_size=4, window=2, max_new_tokens=3)
    for (picture, question), result in zip(asked, scaled, strict=True):
        keep = apply_factor(region_of(question), vlm.token_grids([picture.size])[0], 0.7)
        assert (result.answer, result.kept) == serially(vlm, None, picture, question, keep)


def test_without_a_region_it_is_the_dense_model_whatever_the_budget(vlm):
    picture = families.pictures(1)[0]
    (result,) = pipeline([(picture, "lost sign ?")], Told(), vlm, budget=5, max_new_tokens=3)
    dense = vlm.generate(vlm.inputs([picture], ["lost sign ?"]), max_new_tokens=3, do_sample=False)[0]
    assert (result.answer, result.kept, result.total) == (dense, 64, 64)
    assert result.fallback == "OutOfMemoryError: no memory is left"


def test_an_image_that_the_model_fails_on_fails_alone(vlm, monkeypatch):
    asked = questions(6)
    expected = [result.answer for result in pipeline(asked, Told(), vlm, batch_size=3, max_new_tokens=3)]
    generate, poison = type(vlm).generate, asked[4][0].size

    def failing(self, inputs, **options):
        if poison in inputs.image_sizes:
            raise torch.OutOfMemoryError("no memory is left")
        return generate(self, inputs, **options)

    monkeypatch.setattr(type(vlm), "generate", failing)
    results = list(pipeline(asked, Told(), vlm, batch_size=3, max_new_tokens=3))
    for (picture, _), result, answer in zip(asked, results, expected, strict=True):
        if picture.size == poison:
            assert result.answer is None and result.error == "OutOfMemoryError: no memory is left"
            assert result.region is not None
        else:
            assert result.answer == answer
    assert {picture.size for picture, _ in asked} != {poison}


@pytest.mark.parametrize("build", [families.qwen2_vl, families.llava_next], ids=["qwen2_vl", "llava_next"])
def test_grids_of_other_families_are_known_ahead(build):
    vlm = build()
    asked = questions(5)
    together = pipeline(asked, Told(), vlm, ILP(layer=1), batch_size=2, window=3, max_new_tokens=2)
    for (picture, question), result in zip(asked, together, strict=True):
        inputs = vlm.inputs([picture], [question])
        with pruned(vlm, ILP(layer=1), regions=[region_of(question)], grids=inputs.grids) as patch:
            vlm.generate(inputs, max_new_tokens=2, do_sample=False)
        assert (result.kept, result.total) == (int(patch.kept_B[0]), inputs.grids[0].num_tokens)


def test_slips_are_told_at_once(vlm, localizer):
    for option in ("batch_size", "window", "ahead"):
        with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
            pipeline([], localizer, vlm, **{option: 0})
    with pytest.raises(ValueError, match="either a budget or a factor"):
        pipeline([], localizer, vlm, budget=3, factor=1.0)
    with pytest.raises(ValueError, match="layer=9, but this model has 4 decoder layers"):
        pipeline([], localizer, vlm, ILP(layer=9))
    with pytest.raises(ValueError, match="one model"):
        pipeline([], localizer, localizer.vlm)
    assert not alive()


def test_no_pairs_no_results(vlm):
    assert list(pipeline([], Told(), vlm)) == []
