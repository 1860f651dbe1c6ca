"""The lmms-eval plug-in without lmms-eval: its answers are those of `pruned`, in order, for every method and batch."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cropl.budget import apply_factor
from cropl.errors import UsageError
from cropl.evaluation.arms import METHODS
from cropl.evaluation.pipeline.answer import AnswerStage
from cropl.evaluation.pipeline.items import Asked
from cropl.evaluation.pipeline.locate import locate_batch
from cropl.integrations import arm_options
from cropl.integrations.decoding import Decoding
from cropl.models.localizer import Localizer
from cropl.models.vlm import load_vlm
from cropl.pruning import ILP
from cropl.testbed import weights
from cropl.testbed.samples import samples
from tests.integrations import stub

GREEDY = {"max_new_tokens": 8, "do_sample": False, "until": ["\n\n"]}
QUESTIONS = samples("test", 4)


@pytest.fixture(scope="module")
def llava():
    return load_vlm(weights.resolve("testbed:llava"))


@pytest.fixture(scope="module")
def localizer():
    return Localizer.from_pretrained(weights.resolve("testbed:localizer"))


@pytest.fixture
def cropl_lmms(monkeypatch, llava, localizer):
    """Makes plug-ins around models that are loaded once."""
    stub.install(monkeypatch)

    def loaded(name, dtype=None, device=None, **options):
        return llava if name == weights.resolve("testbed:llava") and not options else load_vlm(name, **options)

    monkeypatch.setattr(arm_options, "load_vlm", loaded)
    monkeypatch.setattr(arm_options.Localizer, "from_pretrained", lambda *args, **options: localizer)
    plugin = importlib.import_module(stub.PLUGIN).CropLmms

    def make(batch_size="4", **given):
        return plugin(batch_size=batch_size, **{"pretrained": "testbed:llava", **given})

    return make


def requests(lm, questions=QUESTIONS, asked=GREEDY, **more):
    """One request for each question, of documents as lmms-eval's tasks have them."""
    docs = [
        {"question": one.question, "key": one.key, "visuals": [] if one.image is None else [one.image], **more}
        for one in questions
    ]
    lm.task_dict = {"testbed": {"test": docs}}
    return [
        stub.Request((one.asked, dict(asked), lambda doc: doc["visuals"], index, "testbed", "test"))
        for index, one in enumerate(questions)
    ]


def texts(results):
    return [result.text for result in results]


def by_hand(llava, localizer, method, **options):
    """Answers of `cropl answer`'s two stages, one question at a time."""
    asked = [Asked(one.picture(), one.question) for one in QUESTIONS]
    answerer = AnswerStage(llava, method, batch_size=1, max_new_tokens=8, **options)
    return [answerer([one], locate_batch(localizer, [one]))[0] for one in asked]


def test_importing_cropl_needs_no_lmms_eval_and_the_plug_in_names_the_extra(monkeypatch):
    code = "import sys, cropl, cropl.integrations; print([m for m in sys.modules if m.split('.')[0] == 'lmms_eval'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    for name in stub.MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    stub.forget(monkeypatch)
    with pytest.raises(ImportError, match="pip install 'lmms-eval<"):
        importlib.import_module(stub.PLUGIN)


def test_the_entry_point_names_the_class(cropl_lmms):
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'\[project.entry-points."lmms_eval.models"\]\ncropl = "(.+):(.+)"', project)
    assert found is not None and re.search(r'\nlmms-eval = \["lmms-eval>=[\d.]+,<[\d.]+"\]', project)
    module, name = found.groups()
    manifest = getattr(importlib.import_module(module), name)()
    assert manifest.model_id == "cropl" and manifest.chat_class_path is None
    module, _, name = manifest.simple_class_path.rpartition(".")
    plugin = getattr(importlib.import_module(module), name)
    assert issubclass(plugin, stub.Lmms) and plugin.is_simple


@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_ilp_answers_as_cropl_answer_does_in_the_order_of_the_requests(cropl_lmms, llava, localizer, batch_size):
    lm = cropl_lmms(batch_size, localizer="testbed:localizer", method="ilp", layer=1, keep=64)
    found = lm.generate_until(requests(lm)[::-1])[::-1]
    wanted = by_hand(llava, localizer, ILP(layer=1), budget=64)
    assert texts(found) == [one.text for one in wanted] and all(one.kept == 64 for one in wanted)
    assert sorted(text for _, _, text in lm.cache_hook.seen) == sorted(texts(found))
    for one, result in zip(QUESTIONS, found, strict=True):
        text = int(llava.inputs([one.picture()], [one.asked]).tensors["attention_mask"].sum()) - 576
        assert result.token_counts.input_tokens == text + 64
        made = llava.tokenizer(result.text, add_special_tokens=False)["input_ids"]
        assert result.token_counts.output_tokens == len(made) + 1  # and the end


def test_a_factor_scales_each_region(cropl_lmms, llava, localizer):
    lm = cropl_lmms(localizer="testbed:localizer", layer=1, factor=0.8)
    found = lm.generate_until(requests(lm))
    wanted = by_hand(llava, localizer, ILP(layer=1), factor=0.8)
    assert texts(found) == [one.text for one in wanted]
    regions = localizer.locate([one.picture() for one in QUESTIONS], [one.question for one in QUESTIONS])
    grids = llava.token_maps([(one.width, one.height) for one in QUESTIONS])
    kept = [int(apply_factor(region, grid, 0.8).sum()) for region, grid in zip(regions, grids, strict=True)]
    assert [one.kept for one in wanted] == kept and len(set(kept)) > 1
    whole = [int(llava.inputs([one.picture()], [one.asked]).tensors["attention_mask"].sum()) for one in QUESTIONS]
    assert [one.token_counts.input_tokens - all_ + 576 for one, all_ in zip(found, whole, strict=True)] == kept


def test_a_layer_average_is_each_images_own(cropl_lmms):
    lm = cropl_lmms(localizer="testbed:localizer", layer=1, keep=192, meaning="layer_average")
    layers = lm.answerer.vlm.num_layers
    (reply,) = lm.answerer([lm._sample(*requests(lm)[0].args)], Decoding(max_new_tokens=1))
    assert reply.kept == round((layers * 192 - 576) / (layers - 1)) < 192


KNOBS = {
    "dense": {"layer": None, "keep": None},
    "divprune": {"layer": None},
    "hybrid": {"localizer": "testbed:localizer"},
    "ilp": {"localizer": "testbed:localizer"},
    "plc": {"pretrained": "testbed:plc", "localizer": "testbed:localizer", "layer": None, "keep": None},
    "prune": {"localizer": "testbed:localizer", "layer": None},
    "pyramiddrop": {"layer": None},
    "schedule": {
        "layer": None,
        "keep": None,
        "localizer": "testbed:localizer",
        "init_args": '{"methods": [{"class_path": "cropl.pruning.ILP", "init_args": {"layer": 1}}, '
        '{"class_path": "cropl.pruning.FastV", "init_args": {"tokens": 16, "layer": 3}}]}',
    },
    "sparsevlm": {"layer": None},
    "sparsevlm+": {"layer": None},
    "visionzip": {"layer": None},
    "vispruner": {"layer": None},
}
KEPT = {"dense": 576, "plc": 68, "schedule": 16}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_answers(cropl_lmms, method):
    given = {"method": method, "layer": 1, "keep": 64, **KNOBS.get(method, {})}
    lm = cropl_lmms(**{name: value for name, value in given.items() if value is not None})
    found = lm.answerer([lm._sample(*one.args) for one in requests(lm, QUESTIONS[:2])], Decoding(max_new_tokens=1))
    around = 3 if method.startswith(("pyramid", "sparse")) else 0  # a ratio, and clusters, come near a count
    assert [one.total for one in found] == [576, 576]
    assert all(abs(one.kept - KEPT.get(method, 64)) <= around for one in found), [one.kept for one in found]


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "ilp"])
def test_a_share_is_each_images_own_where_images_differ(cropl_lmms, method):
    given = {"localizer": "testbed:localizer", "layer": 1} if method == "ilp" else {}
    lm = cropl_lmms(pretrained="testbed:qwen2_vl", method=method, keep=0.5, **given)
    words = samples("test", 1)[0]
    words.image, words.width, words.height = None, 0, 0
    asked = [lm._sample(*one.args) for one in requests(lm, [*samples("test", 16)[::4], words])]
    found = lm.answerer(asked, Decoding(max_new_tokens=2))
    assert len({one.total for one in found[:4]}) > 1 and (found[4].kept, found[4].total) == (0, 0)
    assert all(abs(one.kept - one.total / 2) <= 1 for one in found), found
    alone = [lm.answerer([one], Decoding(max_new_tokens=2))[0] for one in asked]
    assert alone == found


def test_a_question_without_an_image_is_answered_without_pruning(cropl_lmms, llava):
    words = samples("test", 1)[0]
    words.image, words.width, words.height = None, 0, 0
    lm = cropl_lmms(localizer="testbed:localizer", layer=1, keep=64)
    found = lm.generate_until(requests(lm, [QUESTIONS[0], words, QUESTIONS[1]]))
    assert texts(found)[::2] == texts(lm.generate_until(requests(lm, QUESTIONS[:2])))
    asked = len(llava.tokenizer(f"USER: {words.question} ASSISTANT:")["input_ids"])
    assert found[1].token_counts.input_tokens == asked


def test_the_localizer_is_asked_the_bare_question(cropl_lmms, localizer, monkeypatch):
    asked = []
    locate = localizer.locate
    monkeypatch.setattr(
        localizer, "locate", lambda images, questions: (asked.extend(questions), locate(images, questions))[1]
    )
    lm = cropl_lmms(localizer="testbed:localizer", layer=1, keep=64, question="short")
    one = QUESTIONS[0]
    lm.generate_until(requests(lm, [one], short="Is there a heart?"))
    lm.generate_until(requests(lm, [one], short=None))
    assert asked == ["Is there a heart?", one.asked]


def test_random_tokens_are_drawn_by_the_documents_key(cropl_lmms):
    lm = cropl_lmms("1", method="random", layer=1, keep=8, seed=3)
    keys = [lm._sample(*one.args).key for one in requests(lm)]
    assert keys == [one.key for one in QUESTIONS]
    assert lm._sample(*requests(lm, key=None)[2].args).key == "testbed-test-2"
    other = cropl_lmms("6", method="random", layer=1, keep=8, seed=3)
    assert texts(lm.generate_until(requests(lm))) == texts(other.generate_until(requests(other)[::-1]))[::-1]


def test_what_cannot_be_asked_is_refused(cropl_lmms):
    lm = cropl_lmms(method="dense")
    picture = Image.new("RGB", (64, 64))
    for visuals, message in (
        ([picture, picture], "task testbed, document 0: has 2 images"),
        (["video.mp4"], "task testbed, document 0: has a str to look at"),
    ):
        with pytest.raises(UsageError, match=message):
            lm.generate_until(requests(lm, QUESTIONS[:1], visuals=visuals))
    with pytest.raises(UsageError, match="task testbed: generation_kwargs 'visual_cot' is not known here"):
        lm.generate_until(requests(lm, QUESTIONS[:1], {"visual_cot": True}))
    for name in ("loglikelihood", "generate_until_multi_round"):
        with pytest.raises(NotImplementedError, match="use a task with output_type generate_until"):
            getattr(lm, name)([])


def test_a_method_that_ignores_regions_says_so(cropl_lmms):
    lm = cropl_lmms(method="fastv", layer=1, keep=64, localizer="testbed:localizer")
    with pytest.raises(UsageError, match="fastv ignores regions: leave region_source out"):
        lm.generate_until(requests(lm))


def test_what_the_plug_in_itself_takes_is_checked(cropl_lmms):
    with pytest.raises(UsageError, match="batch_size 'auto': must be an integer"):
        cropl_lmms("auto")
    with pytest.raises(UsageError, match="model_args question 3: must be the name of a field"):
        cropl_lmms(method="dense", question=3)
    with pytest.raises(UsageError, match="model_args: unknown key 'localiser'; did you mean 'localizer'"):
        cropl_lmms(localiser="testbed:localizer")
