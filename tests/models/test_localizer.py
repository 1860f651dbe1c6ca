"""The localizer decodes four coordinates that always form a region, alike one by one and in a batch."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from cropl.grid import Region
from cropl.models.localizer import Localizer
from cropl.models.vlm import load_vlm
from cropl.modules.localizer import LocalizerModule, add_tokens
from cropl.prompt import RegionCodec
from cropl.testbed.build import build_qwen2_vl
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


def test_a_readout_travels_with_the_checkpoint(base, tmp_path):
    module = LocalizerModule(base, readout="expected_recall:0.8")
    module.export(tmp_path)
    assert str(Localizer.from_pretrained(str(tmp_path)).readout) == "expected_recall:0.8"
    assert str(Localizer.from_pretrained(str(tmp_path), readout="greedy").readout) == "greedy"
    assert str(LocalizerModule(str(tmp_path)).readout) == "expected_recall:0.8"
    with pytest.raises(ValueError, match="readout 'coverage:1.5': give 0 < level < 1"):
        Localizer.from_pretrained(str(tmp_path), readout="coverage:1.5")
    with pytest.raises(ValueError, match="digits"):
        LocalizerModule(base, codec="digits", readout="expected_recall:0.8")


def test_older_checkpoints_have_their_coverage(base, tmp_path):
    """Whose config knows `region_coverage` alone, as that of the testbed's localizer."""
    LocalizerModule(base).export(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("region_readout") == "greedy"
    (tmp_path / "config.json").write_text(json.dumps(config | {"region_coverage": 0.8}))
    assert str(Localizer.from_pretrained(str(tmp_path)).readout) == "coverage:0.8"
    module = LocalizerModule(str(tmp_path))
    module.export(tmp_path / "again")
    written = json.loads((tmp_path / "again/config.json").read_text())
    assert written["region_readout"] == "coverage:0.8" and "region_coverage" not in written
    (tmp_path / "config.json").write_text(json.dumps(config | {"region_coverage": 1.5}))
    with pytest.raises(ValueError, match="region_coverage.* is 1.5"):
        Localizer.from_pretrained(str(tmp_path))


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
    assert localizer.locate([], []) == [] and len(localizer.distribution([], [])) == 0


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
