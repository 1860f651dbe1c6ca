"""Models whose tokens lie on several grids, through a whole study: budgets, costs, files, pictures, the protocol."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cropl.commands.models import open_vlm
from cropl.errors import UsageError
from cropl.evaluation.overlay import Cells, draw_overlay, svg_overlay
from cropl.evaluation.run import _grids, run_study, save
from cropl.evaluation.study import Study
from cropl.grid import Region
from cropl.metrics import cost
from cropl.models.anyres import token_map
from cropl.testbed.samples import samples as scenes
from cropl.tiling import covered, finest, from_record
from tests.families import internvl, llava_next, under

ARMS = [
    {"method": "ilp", "region_source": "gt", "layer": 1, "budget": [0.25, None]},
    {"method": "random", "layer": 1, "budget": 0.25},
]


def study(**changes) -> Study:
    config = {
        "model": "tiny", "benchmark": "testbed", "data": {"class_path": "x.y"}, "arms": ARMS, "seeds": [0],
        "batch_size": 2, "max_new_tokens": 1, "bootstrap": 20, "gallery": 1,
    }  # fmt: skip
    return Study.from_config({**config, **changes})


@pytest.mark.parametrize("family", ["anyres", "fixed", "internvl"])
def test_a_study(family, tmp_path) -> None:
    if family == "internvl":
        vlm = internvl(dtype=torch.float32)
    else:
        vlm = under(family, llava_next(dtype=torch.float32))
    samples = scenes("test", 3)
    outcome = run_study(study(), samples, vlm)
    rows = {row["arm"]: row for row in outcome.results["rows"]}
    grids = [vlm.token_map(sample.width, sample.height) for sample in samples]
    total = np.mean([grid.num_tokens for grid in grids])
    assert rows["dense"]["tokens_kept_mean"] == total
    assert abs(rows["ilp-gt-k1-0.25"]["tokens_kept_mean"] - total / 4) <= 1
    assert rows["ilp-gt-k1"]["tokens_kept_mean"] == np.mean(
        [sum(covered(grid, sample.region)) for grid, sample in zip(grids, samples)]
    )
    vision = np.mean([cost.vision_flops(vlm.model.config, crops=grid.crops) for grid in grids])
    for row in rows.values():
        assert row["protocol"] == (None if family == "internvl" else family)
        assert row["prefill_flops_with_vision"] - row["prefill_flops"] == pytest.approx(vision)
    page = save(outcome, samples, tmp_path, gallery_size=1).read_text()
    assert page.count("<svg") > 0
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [from_record(line["grid"]) for line in lines] == grids


def test_where_tokens_lie_is_known_without_a_forward(monkeypatch) -> None:
    vlm, samples = under("fixed", llava_next(dtype=torch.float32)), scenes("test", 3)
    expected = [vlm.token_map(sample.width, sample.height) for sample in samples]
    monkeypatch.setattr(torch.nn.Module, "__call__", None)  # any module that is called raises
    assert _grids(vlm, [*samples, samples[0]]) == [*expected, expected[0]]


def test_the_finest_grid_is_drawn_where_it_lies() -> None:
    region, size = Region(0, 0, 3, 7), (160, 100)
    tokens = token_map(*size, ((64, 64),), 32, 4)  # the image in the middle of 16 x 16 tokens, unpadded to 10 x 16
    keep = covered(tokens, region)
    cells = Cells.of(tokens, keep, *size)
    grid, places = finest(tokens)
    assert (cells.grid.rows, cells.grid.cols, cells.width, cells.height) == (10, 16, 10, 10)
    assert (cells.left, cells.top) == (0, 0) and cells.keep == [keep[place] for place in places]
    black = Image.new("RGB", size)
    picture = np.asarray(draw_overlay(black, tokens, keep, None)).astype(int)
    assert picture.shape[1] == 640
    light = picture[24::40, 24::40].sum(-1)  # inside the cells, off the lines
    assert light[:, :7].max() < light[:, 9:].min()  # what was dropped is faded to white
    assert "h80.0v100.0" in svg_overlay(black, tokens, keep, region, None)
    assert cells.grid == grid


def test_the_protocol_is_llava_nexts_alone(tmp_path) -> None:
    assert study(protocol="fixed").protocol == "fixed"
    with pytest.raises(UsageError, match="only LLaVA-NeXT has protocols"):
        open_vlm("testbed:llava", protocol="fixed")
    plain = llava_next(dtype=torch.float32)
    plain.model.save_pretrained(tmp_path)
    plain.processor.save_pretrained(tmp_path)
    assert open_vlm(str(tmp_path), "cpu", protocol="fixed").protocol == "fixed"
    with pytest.raises(UsageError, match="must be one of anyres, fixed"):
        open_vlm(str(tmp_path), "cpu", protocol="2880")
