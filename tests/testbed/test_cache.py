"""The caches of rendered scenes: one for each way to preprocess, whole or not there."""

from __future__ import annotations

import json

import pytest
import torch

from cropl.testbed import build, cache, weights
from cropl.testbed.cache import SceneCache


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build.build_qwen2_vl(tmp_path_factory.mktemp("model"), layers=1, width=64)


def test_another_processor_has_another_cache(checkpoint, tmp_path):
    first = SceneCache(checkpoint, "train", 1, tmp_path / "cache")
    assert SceneCache(checkpoint, "train", 1, tmp_path / "cache").folder == first.folder
    other = build.build_qwen2_vl(tmp_path / "other", layers=1, width=64)
    (settings,) = [f for f in other.glob("*processor*.json") if "longest_edge" in f.read_text()]
    settings.write_text(settings.read_text().replace("36864", "20736").replace("18432", "10368"))
    second = SceneCache(other, "train", 1, tmp_path / "cache")
    assert second.folder != first.folder and second[0].grid_hw != first[0].grid_hw


def test_other_questions_have_another_cache(checkpoint, tmp_path, monkeypatch):
    first = SceneCache(checkpoint, "train", 1, tmp_path)
    asked = cache.questions
    monkeypatch.setattr(cache, "questions", lambda one: asked(one)[1:])
    second = SceneCache(checkpoint, "train", 1, tmp_path)
    assert second.folder != first.folder
    with pytest.raises(ValueError):
        first[0]
    assert len(second[0].questions) > 0


def test_rows_of_another_question_are_refused(checkpoint, tmp_path):
    one = SceneCache(checkpoint, "train", 1, tmp_path)
    one.rows[0]["questions"][0]["question"] = "Why?"
    with pytest.raises(ValueError, match="delete the folder"):
        one[0]


def test_an_interrupted_build_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(cache.np, "save", full)
        with pytest.raises(OSError):
            SceneCache(checkpoint, "train", 1, tmp_path)
    assert not list(tmp_path.iterdir())
    built = SceneCache(checkpoint, "train", 1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [built.folder.name]


def test_half_a_cache_is_built_anew(checkpoint, tmp_path):
    folder = SceneCache(checkpoint, "train", 1, tmp_path).folder
    (folder / "cache.json").write_text("{")
    assert len(SceneCache(checkpoint, "train", 1, tmp_path)[0].questions) > 0
    assert json.loads((folder / "cache.json").read_text())["key"]["count"] == 1


def test_of_two_builders_one_wins(tmp_path):
    with weights.written_aside(tmp_path / "x") as aside:
        (aside / "mine").touch()
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "theirs"]


@pytest.mark.parametrize("make", [build.build_llava, build.build_qwen2_vl])
def test_building_a_model_leaves_the_random_state(make, tmp_path):
    before = torch.get_rng_state()
    make(tmp_path / "a", layers=1, width=32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    make(tmp_path / "b", layers=1, width=32)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_an_untrained_model_is_made_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "build_llava", lambda folder: (folder / "config.json").touch())
    assert weights.resolve("untrained:llava") == weights.resolve("untrained:llava") == "runs/untrained/llava"
    assert [path.name for path in (tmp_path / "runs/untrained").iterdir()] == ["llava"]
