"""A fingerprint changes with everything that answers or regions depend on, and with nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cropl.evaluation import fingerprint
from cropl.evaluation.arm_run import Run
from cropl.evaluation.plan import make_plan
from cropl.evaluation.study import Study
from cropl.grid import Region
from cropl.models.localizer import Localizer
from cropl.models.vlm import VLM, load_vlm
from cropl.testbed.samples import samples as scenes


@pytest.fixture(autouse=True)
def same_code(monkeypatch) -> None:
    monkeypatch.setattr(fingerprint, "code", lambda: "this")


@pytest.fixture(scope="module")
def samples() -> list[Any]:
    return scenes("test", 3)


@pytest.fixture(scope="module")
def vlm(tiny_llava) -> VLM:
    return load_vlm(tiny_llava)


@pytest.fixture(scope="module")
def localizer(tiny_localizer) -> Localizer:
    return Localizer.from_pretrained(tiny_localizer)


def study(tiny_llava: str, **changes: Any) -> Study:
    config = {"model": tiny_llava, "localizer": "loc", "data": {"class_path": "x.y"}, "max_new_tokens": 2}
    arms = [{"method": "ilp", "region_source": "gt", "layer": 1, "budget": 16}]
    return Study.from_config({**config, "arms": arms, **changes})


CHANGES: list[dict[str, Any]] = [
    {"key": "other"}, {"question": "Which?"}, {"prompt": "Which?"}, {"answers": ["x"]}, {"boxes": []}, {"width": 7},
    {"height": 7},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_questions_are_all_that_is_asked(samples, change) -> None:
    told = fingerprint.of_questions(samples)
    assert told == fingerprint.of_questions(scenes("test", 3))
    assert told != fingerprint.of_questions([*samples[:2], replace(samples[2], **change)])
    assert told != fingerprint.of_questions(samples[:2]) and told != fingerprint.of_questions(samples[::-1])


def test_answers_follow_from_models_and_their_settings(samples, vlm, tiny_llava, monkeypatch) -> None:
    first = fingerprint.of_answers(study(tiny_llava), samples, {None: vlm})
    assert json.loads(json.dumps(first)) == first, "it goes through a file"
    for same in ({"batch_size": 2}, {"bootstrap": 5}, {"gallery": 0}, {"chunk_images": 1}, {"seed": 4}, {"out": "o"}):
        assert fingerprint.of_answers(study(tiny_llava, **same), samples, {None: vlm}) == first
    other = fingerprint.of_answers(study(tiny_llava, max_new_tokens=3), samples, {None: vlm})
    assert differing(first, other) == ["max_new_tokens"]
    eager = load_vlm(tiny_llava, attn_implementation="eager")
    assert differing(first, fingerprint.of_answers(study(tiny_llava), samples, {None: eager})) == [
        f"model {tiny_llava}"
    ]
    second = fingerprint.of_answers(study(tiny_llava), samples, {None: vlm, "tuned": vlm})
    assert differing(first, second) == ["model tuned"]
    monkeypatch.setattr(fingerprint, "code", lambda: "another commit")
    assert differing(first, fingerprint.of_answers(study(tiny_llava), samples, {None: vlm})) == ["code"]


def test_weights_that_are_exchanged_in_their_folder_are_others(samples, vlm, tiny_llava, tmp_path) -> None:
    folder = Path(shutil.copytree(tiny_llava, tmp_path / "model"))
    mine = study(str(folder))
    first = fingerprint.of_answers(mine, samples, {None: vlm})
    assert fingerprint.of_answers(mine, samples, {None: vlm}) == first
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert differing(first, fingerprint.of_answers(mine, samples, {None: vlm})) == [f"model {folder}"]


def test_regions_follow_from_the_localizer_and_how_it_is_read(
    samples, vlm, localizer, tiny_llava, tiny_localizer, monkeypatch
) -> None:
    first = fingerprint.of_regions(study(tiny_llava), samples, localizer, None)
    assert set(first) == {"questions", "code", "versions", "localizer", "readout"}
    assert fingerprint.of_regions(study(tiny_llava, max_new_tokens=9, model="m"), samples, localizer, None) == first
    assert set(fingerprint.of_regions(study(tiny_llava), samples, None, None)) == {"questions", "code", "versions"}
    asked = study(tiny_llava, grounding="g")
    assert differing(first, fingerprint.of_regions(asked, samples, localizer, vlm)) == ["grounding"]
    monkeypatch.setattr(localizer, "readout", "coverage:0.5")
    assert differing(first, fingerprint.of_regions(study(tiny_llava), samples, localizer, None)) == ["readout"]
    monkeypatch.undo()
    monkeypatch.setattr(fingerprint, "code", lambda: "this")
    small = Localizer.from_pretrained(tiny_localizer, max_pixels=18432)
    assert differing(first, fingerprint.of_regions(study(tiny_llava), samples, small, None)) == ["localizer"]


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return [name for name in {**first, **second} if first.get(name) != second.get(name)]


def runs_of(vlm: VLM, samples: list[Any], arm: dict[str, Any], seeds: list[int] | None = None) -> list[Run]:
    arms = Study.from_config({
        "model": "m", "localizer": "l", "data": {"class_path": "x.y"}, "arms": [arm], "seeds": seeds or [0]
    }).arms  # fmt: skip
    grids = vlm.token_maps([(one.width, one.height) for one in samples])
    regions = {(source, None): [one.region for one in samples] for source in ("gt", "predicted")}
    return make_plan(arms, {None: vlm.num_layers}, [one.key for one in samples], grids, regions)


def test_a_run_is_its_method_and_what_it_keeps(vlm, samples) -> None:
    arm = {"method": "ilp", "region_source": "gt", "layer": 1, "budget": 16}
    [dense, first] = runs_of(vlm, samples, arm)
    assert fingerprint.of_run(first) == fingerprint.of_run(runs_of(vlm, samples, arm)[1])
    others = [{"budget": 20}, {"layer": 2}, {"positions": "compact"}, {"region_source": "predicted"},
              {"budget_meaning": "layer_average", "budget": 70}]  # fmt: skip
    marks = [fingerprint.of_run(runs_of(vlm, samples, {**arm, **change})[1]) for change in others]
    seeds = runs_of(vlm, samples, {"method": "random", "layer": 1, "budget": 16}, [0, 1])[1:]
    marks += [fingerprint.of_run(run) for run in (dense, first, *seeds)]
    assert len(set(marks)) == len(marks)


def test_a_run_changes_with_its_regions_and_masks(vlm, samples) -> None:
    run = runs_of(vlm, samples, {"method": "ilp", "region_source": "gt", "layer": 1, "budget": 16})[1]
    assert run.keep is not None
    flipped = [run.keep[0].clone(), *run.keep[1:]]
    flipped[0].reshape(-1)[0] ^= True
    assert isinstance(flipped[0], torch.Tensor)
    for change in ({"keep": flipped}, {"regions": [Region(0, 0, 0, 0), *(run.regions or [])[1:]]}, {"kept": [1] * 3}):
        assert fingerprint.of_run(replace(run, **change)) != fingerprint.of_run(run)


def test_a_method_of_ones_own_counts_with_its_source(vlm, samples, tmp_path, monkeypatch) -> None:
    run = runs_of(vlm, samples, {"method": "fastv", "layer": 1, "budget": 16})[1]
    file = tmp_path / "mine.py"
    file.write_text("# first\n")
    cls = type("Mine", (), {"__module__": "mine"})
    monkeypatch.setitem(fingerprint.sys.modules, "mine", SimpleNamespace(__file__=str(file)))
    monkeypatch.setattr(fingerprint, "load_object", lambda path: cls)
    first = fingerprint.of_run(run)
    file.write_text("# second\n")
    assert fingerprint.of_run(run) != first


def test_code_is_what_stands_in_cropls_files(monkeypatch, tmp_path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(fingerprint.cropl, "__file__", str(tmp_path / "__init__.py"))
    told = []
    for name, text in (("one.py", ""), ("one.py", "# later"), ("two.py", "# later"), ("two.txt", "no code")):
        (tmp_path / name).write_text(text)
        fingerprint.code.cache_clear()
        told.append(fingerprint.code())
    fingerprint.code.cache_clear()  # of the files that are cropl's
    assert len(set(told)) == 3 and told[2] == told[3]


def test_an_image_that_is_another_is_another_question(samples, tmp_path) -> None:
    path = tmp_path / "image.png"
    samples[0].picture().save(path)
    stored = [replace(samples[0], image=path), *samples[1:]]
    told = fingerprint.of_questions(stored)
    assert told == fingerprint.of_questions(stored) != fingerprint.of_questions(samples)
    samples[0].picture().rotate(90).save(path)
    assert fingerprint.of_questions(stored) != told
    turned = replace(samples[0], image=samples[0].picture().rotate(90))
    upright = replace(samples[0], image=samples[0].picture())
    assert fingerprint.of_questions([turned]) != fingerprint.of_questions([upright])
