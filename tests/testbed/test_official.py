"""The testbed in the official formats: readers, prompts and joins work on it, and an export is whole or not there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cropl import recipe
from cropl.benchmarks.base import read_truths
from cropl.benchmarks.join import join
from cropl.benchmarks.names import BENCHMARKS, benchmark
from cropl.data.images import load_image
from cropl.data.readers.llava_instruct import LlavaInstruct
from cropl.data.readers.llava_questions import LlavaQuestions
from cropl.data.readers.scienceqa import OPTION_LETTER
from cropl.data.sample import Sample
from cropl.grid import Region
from cropl.testbed.official import FORMATS, asked, export
from cropl.testbed.questions import questions
from cropl.testbed.scenes import Scene, scene
from cropl.testbed.tokenizer import vocabulary

COUNT = 14
LLAVA = {
    "gqa": "llava_gqa_testdev_balanced.jsonl",
    "textvqa": "llava_textvqa_val_v051_ocr.jsonl",
    "vqav2": "llava_vqav2_mscoco_val2014.jsonl",
    "pope": "llava_pope_test.jsonl",
    "mme": "llava_mme.jsonl",
}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("official") / "export", count=COUNT)


def of_recipe(name: str, root: Path) -> tuple[dict[str, Any], list[Sample]]:
    """A benchmark's recipe, and the questions that it asks."""
    loaded = recipe.load([f"testbed/benchmark/{name}"], {"vars.root": str(root)})
    return loaded, recipe.instantiate(loaded["data"], "data")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", FORMATS)
def test_a_recipe_asks_every_question_of_its_annotations(name: str, exported: Path) -> None:
    loaded, samples = of_recipe(name, exported)
    scorer = benchmark(loaded["scorer"])
    truths = read_truths(scorer, [Path(file) for file in loaded["annotations"]])
    ids = join(scorer, truths, samples)
    assert sorted(ids) == sorted(truth.id for truth in truths) and len(ids) == len(samples) >= COUNT
    for sample, id in zip(samples, ids, strict=True):
        (truth,) = [truth for truth in truths if truth.id == id]
        most, _ = Counter(truth.answers).most_common(1)[0]
        assert not sample.answers or sample.answers[0].lower() in (most.lower(), *map(str.lower, truth.answers))
        assert (sample.image is None) == (truth.group == "text")
        if sample.image is not None:
            assert sample.picture().size == (sample.width, sample.height)


@pytest.mark.parametrize("name", LLAVA)
def test_llavas_files_ask_the_same_in_the_same_words(name: str, exported: Path) -> None:
    loaded, ours = of_recipe(name, exported)
    scorer = benchmark(name)
    truths = read_truths(scorer, [Path(file) for file in loaded["annotations"]])
    path = exported / name / LLAVA[name]
    theirs = [_sample(one) for one in LlavaQuestions(path, name, exported)]
    by_truth = dict(zip(join(scorer, truths, theirs), theirs, strict=True))
    assert len(by_truth) == len(ours) == len(theirs)
    for id, sample in zip(join(scorer, truths, ours), ours, strict=True):
        assert sample.asked.encode() == by_truth[id].asked.encode()
    assert {one.asked for one in theirs} == {json.loads(line)["text"] for line in path.read_text().splitlines()}


def test_scienceqas_prompts_are_those_of_llavas_file(exported: Path) -> None:
    _, ours = of_recipe("scienceqa", exported)
    rows = json.loads((exported / "scienceqa/llava_test_CQM-A.json").read_text())
    shown = [row["conversations"][0]["value"].removeprefix("<image>\n") + f"\n{OPTION_LETTER}" for row in rows]
    assert [one.asked.encode() for one in ours] == [text.encode() for text in shown]
    assert [one.image is None for one in ours] == ["image" not in row for row in rows]
    scorer = benchmark("scienceqa")
    truths = read_truths(scorer, [exported / "scienceqa" / file for file in ("problems.json", "pid_splits.json")])
    theirs = [_sample(one) for one in LlavaInstruct(exported / "scienceqa/llava_test_CQM-A.json", source="scienceqa")]
    assert join(scorer, truths, theirs) == [one.id for one in ours]
    alone = [one for one in ours if one.image is None]
    assert len(alone) * 3 == len(ours)
    for one in alone:
        _, *options = [line for line in one.asked.split("\n") if line[1:3] == ". " or line.endswith("?")]
        assert f"{one.answers[0]}. " + min(text[3:] for text in options) in options
    contexts = sum(one.asked.startswith("Context: ") for one in ours)
    assert 0 < contexts < len(ours)


def _sample(one: Any) -> Sample:
    """Of LLaVA's annotation, without its image."""
    text = (one.question, [], [], 0, 0, Region.full(), one.kind, one.source, one.split, None)
    return Sample(one.id, *text, id=one.id, prompt=one.prompt)


@pytest.mark.parametrize("name", FORMATS)
def test_the_tiny_models_are_asked_in_their_own_words(name: str, exported: Path) -> None:
    _, samples = of_recipe(name, exported)
    known = set(vocabulary())
    place = list(FORMATS).index(name)
    trained = {
        question.text.lower()
        for index in range(place * COUNT, (place + 1) * COUNT)
        for question in questions(scene("test", index))
    }
    for sample in samples:
        text = asked(sample)
        assert "\n" not in text and len(text) < len(sample.asked)
        if sample.image is not None:
            words = text.lower().replace("?", " ?").split()
            assert set(words) <= known, text
            if name not in ("pope", "mme"):  # whose shapes are drawn anew
                assert text.lower() in trained, text


def test_what_each_format_is_there_for(exported: Path) -> None:
    gqa = json.loads((exported / "gqa/testdev_balanced_questions.json").read_text()).values()
    assert {row["types"]["semantic"] for row in gqa} == {"attr", "rel", "global", "obj"}
    textvqa = json.loads((exported / "textvqa/TextVQA_0.5.1_val.json").read_text())["data"]
    assert {len(row["answers"]) for row in textvqa} == {10} and all(row["question"].islower() for row in textvqa)
    assert len({row["image_id"] for row in textvqa}) < len(textvqa)  # so ids repeat in LLaVA's file
    annotations = json.loads((exported / "vqav2/v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    said = [{one["answer"] for one in row["answers"]} for row in annotations]
    assert min(map(len, said)) == 1 < max(map(len, said))
    for category in ("adversarial", "popular", "random"):
        rows = [json.loads(line) for line in (exported / f"pope/coco_pope_{category}.json").read_text().splitlines()]
        assert Counter(row["label"] for row in rows) == {"yes": COUNT, "no": COUNT}
        for row in rows:
            index = int(row["image"][-16:-4]) - 1
            there = {thing.name for thing in scene("test", index).things}
            name = row["text"].removeprefix("Is there a ").removesuffix(" in the image?")
            assert (name in there) == (row["label"] == "yes")
            if category == "adversarial":
                assert set(name.split()) & {word for thing in there for word in thing.split()}
    root = exported / "mme/MME_Benchmark_release_version"
    assert len(list(root.iterdir())) == 14 and (root / "scene/questions_answers_YN").is_dir()
    for path in root.rglob("*.txt"):
        assert sorted(line.rpartition("\t")[2] for line in path.read_text().splitlines()) == ["No", "Yes"]
    for line in (exported / "textvqa" / LLAVA["textvqa"]).read_text().splitlines():
        row = json.loads(line)
        (tokens,) = [
            part[21:].split(", ") for part in row["text"].split("\n") if part.startswith("Reference OCR token: ")
        ]
        (truth,) = {one["image_id"]: one for one in textvqa if one["image_id"] == row["image"][:-4]}.values()
        assert Counter(truth["answers"]).most_common(1)[0][0].upper() in [*tokens, "UNANSWERABLE"]


def test_every_image_can_be_loaded_and_every_benchmark_has_its_own(exported: Path) -> None:
    images = [path for path in exported.rglob("*") if path.suffix in (".jpg", ".png")]
    assert len(images) == 6 * COUNT == len({path.read_bytes() for path in images})
    assert all(load_image(path).mode == "RGB" for path in images[::7])


def test_an_export_is_made_once_and_never_mixed(exported: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def drawn(*arguments: Any) -> None:
        raise AssertionError("drawn again")

    with monkeypatch.context() as patched:
        patched.setattr("cropl.testbed.official.scene", drawn)
        assert export(exported, count=COUNT) == exported
        with pytest.raises(ValueError, match=r"holds another export \(count 14\); remove it"):
            export(exported, count=20)
        with pytest.raises(ValueError, match="count must be at least 14"):
            export(tmp_path / "few", count=13)
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "thesis.txt").write_text("keep")
        with pytest.raises(ValueError, match=r"holds other files and no export\.json"):
            export(mine)
        assert (mine / "thesis.txt").read_text() == "keep"
    with monkeypatch.context() as patched:
        patched.setattr(Scene, "render", stopped_after(5, Scene.render))
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path / "new", count=COUNT)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".new*"))


def stopped_after(count: int, render: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
    left = iter(range(count))

    def stopped(one: Scene) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return render(one)

    return stopped


def test_an_export_is_the_same_every_time(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()  # an empty folder will do
    assert files(export(tmp_path / "again", count=COUNT)) == files(exported)


def test_every_benchmark_has_both_recipes() -> None:
    assert set(FORMATS) == set(BENCHMARKS)
    real = {name.removeprefix("benchmark/") for name in recipe.names("benchmark/")}
    assert real == {*BENCHMARKS, "vqav2_val", "viscot_textvqa"}
    assert {name.rpartition("/")[2] for name in recipe.names("testbed/benchmark/")} == {*BENCHMARKS, "scenes"}


OFFICIAL = [
    name
    for name in (*recipe.names("benchmark/"), *recipe.names("testbed/benchmark/"))
    if recipe.load([name])["scorer"] is not None
]


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_recipe_names_what_is_there(name: str) -> None:
    loaded = recipe.load([name])
    testbed = {"prepare"} if name.startswith("testbed/") else set()
    parts = {"vars", "benchmark", "scorer", "data", "annotations", "prompt", "max_new_tokens"}
    assert set(loaded) == parts | testbed
    assert benchmark(loaded["scorer"]).name == loaded["benchmark"].removesuffix("_val") and recipe.describe(name)
    assert recipe.load_object(loaded["data"]["class_path"]) and name.endswith(f"/{loaded['benchmark']}")
    for source in loaded["data"]["init_args"]["sources"]:
        assert recipe.instantiate(source, name).images is not None
    if testbed:
        assert recipe.load_object(loaded["prompt"]) is asked
        assert recipe.load_object(loaded["prepare"]["class_path"]) is export
    else:
        assert loaded["prompt"] is None and loaded["data"]["init_args"]["count"]
