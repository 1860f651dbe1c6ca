"""The localizer decodes four coordinates that always form a region, alike one by one and in a batch."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cropl.grid import Region
from cropl.models.localizer import Localizer, _Coordinates, coordinates
from cropl.models.vlm import load_vlm
from cropl.modules.localizer import LocalizerModule, add_tokens
from cropl.prompt import RegionCodec
from cropl.testbed.build import build_qwen2_vl
from cropl.testbed.cache import SceneCache
from cropl.testbed.samples import samples


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(build_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"), layers=2, width=64))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A localizer's checkpoint (untrained, but with its tokens), written by the module that trains it."""
    torch.manual_seed(1)
    module = LocalizerModule(base)
    folder = tmp_path_factory.mktemp("localizer")
    module.export(folder)
    return module, str(folder)


@pytest.mark.parametrize("coverage", [0.0, 0.9])
def test_constrained_decoding_picks_an_allowed_coordinate(coverage):
    ids = torch.randperm(40)[:16].tolist()
    constraint = _Coordinates(ids, prompt_length=3, coverage=coverage)
    rows = torch.zeros(20, 3, dtype=torch.long)
    picked = []
    for step in range(4):
        scores = constraint(rows, torch.randn(20, 60))
        assert (scores.isfinite().sum(1) == 1).all()
        token_B = scores.argmax(1)
        axis = ids[:8] if step % 2 == 0 else ids[8:]
        picked.append([axis.index(token) for token in token_B.tolist()])
        rows = torch.cat([rows, token_B[:, None]], dim=1)
    for region in zip(*picked):
        Region(*region)


@given(st.lists(st.floats(-6, 6), min_size=8, max_size=8), st.floats(0.05, 0.98), st.integers(0, 7))
def test_coverage_leaves_out_no_more_than_it_may(scores, coverage, least):
    """Against the definition: the next coordinate further in would leave out too much."""
    p = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
    low = int(coordinates(torch.tensor([scores]), 0, coverage)[0])
    assert sum(p[low:]) > coverage - 1e-5 and sum(p[low + 1 :]) < coverage + 1e-5
    masked = torch.tensor([scores]).masked_fill(torch.arange(8) < least, float("-inf"))
    p = masked[0].double().softmax(0).tolist()
    high = int(coordinates(masked, 2, coverage)[0])
    assert high >= least and sum(p[: high + 1]) > coverage - 1e-5 and sum(p[:high]) < coverage + 1e-5
    assert masked[0, coordinates(masked, 2)[0]] == masked.max()


def test_coverage_travels_with_the_checkpoint(base, tmp_path):
    module = LocalizerModule(base, coverage=0.8)
    module.export(tmp_path)
    assert Localizer.from_pretrained(str(tmp_path)).coverage == 0.8
    assert Localizer.from_pretrained(str(tmp_path), coverage=0).coverage == 0
    assert LocalizerModule(str(tmp_path)).coverage == 0.8
    with pytest.raises(ValueError, match="region_coverage.* is 1.5"):
        Localizer.from_pretrained(str(tmp_path), coverage=1.5)
    with pytest.raises(ValueError, match="digits"):
        LocalizerModule(base, codec="digits", coverage=0.8)


def test_an_export_needs_nothing_of_the_folder_that_it_came_from(base, tmp_path):
    """As with a base from the hub, whose processor is not in a folder here."""
    shutil.copytree(base, tmp_path / "base")
    module = LocalizerModule(str(tmp_path / "base"))
    shutil.rmtree(tmp_path / "base")
    module.export(tmp_path / "export", dtype="float16")
    made = samples("val", 1)[0]
    assert len(Localizer.from_pretrained(str(tmp_path / "export")).locate([made.image], [made.question])) == 1


def test_a_batch_gives_what_its_rows_give_alone(trained):
    localizer = Localizer.from_pretrained(trained[1])
    made = samples("val", 7)
    images, questions = [s.image for s in made], [s.question for s in made]
    together = localizer.locate(images, questions)
    assert all(isinstance(region, Region) for region in together) and localizer.fallbacks == 0
    assert together == [localizer.locate([i], [q])[0] for i, q in zip(images, questions)]
    assert localizer.locate([], []) == []


def test_validation_decodes_as_inference_does(trained, base, tmp_path):
    """The module's packed, step-by-step decoding and `Localizer.locate` are two implementations of one thing."""
    module, folder = trained
    module.eval()
    cache = SceneCache(base, "val", 3, tmp_path)
    items = [cache[i] for i in range(3)]
    batch = {
        "pixels": [i.pixels for i in items],
        "grids": [i.grid_hw for i in items],
        "questions": [i.questions for i in items],
    }
    packed = module.locate(batch)
    pictures = [i.picture() for i in items for _ in i.questions]
    questions = [q["question"] for i in items for q in i.questions]
    assert Localizer.from_pretrained(folder).locate(pictures, questions) == packed


@pytest.mark.parametrize("style", ["tokens", "digits"])
def test_validation_reads_both_styles(base, tmp_path, style):
    """Each coordinate is the best of eight given those before it, whatever a region is written with."""
    module = LocalizerModule(base, codec=style).eval()
    cache = SceneCache(base, "val", 1, tmp_path)
    item = cache[0]
    batch = {"pixels": [item.pixels], "grids": [item.grid_hw], "questions": [item.questions]}
    found = module.locate(batch)
    codes = module.coordinate_ids()
    rows = [{**row, "region": region.as_tuple()} for row, region in zip(item.questions, found)]
    with torch.no_grad():
        _, logits, targets = module({**batch, "questions": [rows]})
    at = torch.isin(targets, codes).nonzero().flatten().reshape(-1, 4)
    for region, places in zip(found, at):
        for step, (place, chosen) in enumerate(zip(places, region.as_tuple())):
            least = region.as_tuple()[step - 2] if step >= 2 else 0
            assert int(logits[place, codes[step % 2]][least:].argmax()) + least == chosen


def test_a_model_without_coordinate_tokens_is_no_localizer(base):
    with pytest.raises(ValueError, match="coordinate tokens"):
        Localizer.from_pretrained(base)


def test_digits_need_no_tokens_and_fall_back_to_the_whole_image(base):
    localizer = Localizer.from_pretrained(base, codec=RegionCodec("digits"))
    made = samples("val", 2)
    assert localizer.locate([s.image for s in made], [s.question for s in made]) == [Region.full()] * 2
    assert localizer.fallbacks == 2


def test_the_embedding_table_only_grows(base):
    vlm = load_vlm(base)
    model, tokenizer = vlm.model, vlm.processor.tokenizer
    known = len(tokenizer)
    model.resize_token_embeddings(known + 40)  # a padded table, like the real checkpoint's
    before = model.get_input_embeddings().weight.detach().clone()
    add_tokens(model, tokenizer, RegionCodec().added_tokens)
    after = model.get_input_embeddings().weight
    assert len(after) == len(before) == known + 40
    assert torch.equal(after[:known], before[:known])
    assert model.get_output_embeddings().weight is after  # tied, and still so
    rows = after[known : known + 16]
    assert rows.std(0).mean() > 0 and len(torch.unique(rows, dim=0)) == 16
