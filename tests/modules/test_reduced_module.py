"""Training under VisionZip: only the projector changes, the loss falls, and generation sees what was trained."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from cropl.cli import main
from cropl.data.collate import SampleCollate
from cropl.data.sample import Sample
from cropl.models.packed import places
from cropl.models.vlm import load_vlm
from cropl.modules.reduced import ReducedModule
from cropl.pruning import VisionZip, VisPruner, pruned
from cropl.testbed.samples import samples
from tests.modules.gradients import mixed


def quiet(module: ReducedModule) -> ReducedModule:
    """Outside of a trainer nothing is logged."""
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module


def batch_of(module: ReducedModule, data: list[Sample]) -> dict:
    return SampleCollate(module.vlm.prepare)(data)


def test_only_the_projector_trains_and_the_loss_falls() -> None:
    torch.manual_seed(0)
    module = quiet(ReducedModule("testbed:llava", VisionZip(16)))
    module.train()
    batch = batch_of(module, samples("train", 6))
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    assert trained and all("multi_modal_projector" in name for name, _ in trained)
    optimizer = torch.optim.AdamW([p for _, p in trained], lr=1e-3, weight_decay=0.0)
    losses = []
    for step in range(5):
        module._start_window()
        loss = module.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
    changed = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("multi_modal_projector" in name for name in changed)
    assert len(changed) == len(trained)


@pytest.mark.parametrize("method", [VisionZip(20), VisPruner(20)])
def test_generation_sees_what_is_trained(tiny_llava, tmp_path, method) -> None:
    torch.manual_seed(1)
    module = ReducedModule(str(tiny_llava), method).eval()
    module.export(tmp_path)
    vlm = load_vlm(str(tmp_path))
    data = [replace(one, followups=[]) for one in samples("train", 12)[::4]]  # of different pictures
    with torch.no_grad():
        rows, logits, _ = module(batch_of(module, data))
    visual = sum(int(module.vlm.visual_mask(ids).sum()) for ids in rows.packed.input_ids_BS)
    assert visual == 20 * len(data) == sum(map(len, rows.features))
    inputs = vlm.inputs([one.picture() for one in data], [one.asked for one in data])
    with torch.no_grad(), pruned(vlm, method):
        last_BW = vlm.model(**inputs.kwargs(), logits_to_keep=1).logits[:, -1]
    places_T = list(zip(*(part.tolist() for part in places(rows.packed))))
    first = [places_T.index(place) for place in dict.fromkeys(places_T)]
    asked = [row["question"] for line in rows.asked for row in line]
    mine = [next(i for i, one in enumerate(data) if one.asked == question) for question in asked]
    torch.testing.assert_close(logits[first], last_BW[mine], atol=2e-4, rtol=1e-3)


def test_texts_alone_keep_the_projector_in_step(tiny_llava) -> None:
    module = quiet(ReducedModule(str(tiny_llava), VisionZip(16)))
    module.train()
    texts = [one for one in mixed() if one.image is None]
    module.training_step(batch_of(module, texts), 0).backward()
    for name, parameter in module.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name


def test_what_would_do_nothing_or_something_else_is_refused(tiny_llava, tiny_localizer) -> None:
    for option in ({"stride": 2}, {"evidence_weight": 1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}.*on a grid, which visionzip leaves"):
            ReducedModule(str(tiny_llava), VisionZip(16), **option)
    with pytest.raises(ValueError, match="qwen2_vl model, in which tokens keep their places.*visionzip"):
        ReducedModule(str(tiny_localizer), VisionZip(16))


@pytest.mark.slow
def test_the_testbeds_recipe_trains_exports_and_is_evaluated(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {
        "model.checkpoint": "untrained:llava", "data.checkpoint": "untrained:llava", "data.scenes": 8,
        "data.val_scenes": 2, "data.batch_size": 4, "trainer.max_steps": 2, "trainer.val_check_interval": 2,
        "trainer.log_every_n_steps": 1, "model.method.init_args.tokens": 48,
    }  # fmt: skip
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    assert main(["fit", "-c", "testbed/visionzip_tuned", *given]) == 0
    folder = "runs/testbed/visionzip_tuned/export"
    assert "trained with visionzip" in (tmp_path / folder / "README.md").read_text()
    arms = json.dumps([{"method": "visionzip", "budget": 48, "model": folder}])
    study = ["--localizer", "null", "--limit", "3", "--arms", arms, "--out", "out"]
    assert main(["evaluate", "-c", "testbed/plc_study", *study]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["dense", "visionzip"]
    assert rows[1]["tokens_kept_mean"] == rows[1]["layer_average_tokens"] == 48
    assert rows[1]["model"] == folder and rows[1]["kv_bytes"] < rows[0]["kv_bytes"]
