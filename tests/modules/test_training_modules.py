"""The training modules: what trains, what stays frozen, and that validation scores as generation would."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cropl.datamodules.testbed import collate_scenes
from cropl.grid import Region
from cropl.metrics.answer import exact_match
from cropl.models.packed import places
from cropl.models.vlm import load_vlm
from cropl.modules.dense_labels import DenseLabelModule
from cropl.modules.documents import strided
from cropl.modules.instruction import InstructionModule
from cropl.modules.localizer import LocalizerModule
from cropl.testbed.build import build_llava, build_qwen2_vl
from cropl.testbed.cache import SceneCache
from cropl.testbed.samples import samples

BUILD = {"llava": build_llava, "qwen2_vl": build_qwen2_vl}


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def prepared(request, tmp_path_factory):
    """(folder of an untrained model, batch of two scenes)."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = str(BUILD[request.param](folder / "model", layers=2, width=64))
    cache = SceneCache(checkpoint, "train", 2, folder / "cache")
    return checkpoint, collate_scenes([cache[0], cache[1]]), cache


def _losses(module, batch, steps=12):
    module.log = module.log_dict = lambda *args, **kwargs: None
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for i in range(steps):
        optimizer.zero_grad()
        loss = module.training_step(batch, i)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def test_the_tower_learns_its_dense_labels_and_nothing_else_moves(prepared):
    checkpoint, batch, _ = prepared
    module = DenseLabelModule(checkpoint)
    module._trainer = type("T", (), {"global_step": 0, "estimated_stepping_batches": 1})()
    before = {n: p.clone() for n, p in module.named_parameters() if not p.requires_grad}
    losses = _losses(module, batch)
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters() if n in before)
    assert any("language_model" in name for name in before)


def test_windows_carry_the_labels_of_their_own_patches(tmp_path):
    checkpoint = str(build_llava(tmp_path / "model", layers=1, width=64))
    cache = SceneCache(checkpoint, "train", 2, tmp_path / "cache")
    batch = collate_scenes([cache[0], cache[1]])
    batch["labels"] = torch.arange(2 * 576).float()[:, None].expand(-1, 8)
    module = DenseLabelModule(checkpoint)
    _, labels = module._windows(batch)
    windows = labels[:, 0].reshape(8, 12, 12)
    assert (windows.diff(dim=2) == 1).all() and (windows.diff(dim=1) == 24).all()
    assert (windows[::2] < 576).all() and (windows[1::2] >= 576).all()


def test_instruction_trains_decoder_and_projector_with_the_tower_frozen(prepared):
    checkpoint, batch, _ = prepared
    module = InstructionModule(checkpoint)
    frozen = [n for n, p in module.named_parameters() if not p.requires_grad]
    trained = [n for n, p in module.named_parameters() if p.requires_grad]
    assert frozen and all("vision_tower" in n or ".visual." in n for n in frozen)
    assert any("projector" in n or "merger" in n for n in trained) and any("layers.1" in n for n in trained)
    assert set(module.state_dict()) >= set(trained) and not set(module.state_dict()) & set(frozen)
    losses = _losses(module, batch)
    assert losses[-1] < 0.7 * losses[0]


def test_a_frozen_projector_stays_as_it_is(prepared):
    checkpoint, batch, _ = prepared
    module = InstructionModule(checkpoint, freeze_projector=True)
    before = [p.clone() for p in module.vlm.projector.parameters()]
    _losses(module, batch, steps=2)
    assert all(torch.equal(p, b) for p, b in zip(module.vlm.projector.parameters(), before))


def test_validation_counts_what_generation_answers(prepared):
    """Teacher-forced scoring of packed rows against greedy decoding, one question at a time."""
    checkpoint, batch, cache = prepared
    module = InstructionModule(checkpoint)
    _losses(module, batch, steps=25)
    module.eval()
    with torch.no_grad():
        module.validation_step(batch, 0)
    score = float(module.accuracy.compute()["accuracy"])
    vlm = load_vlm(checkpoint)
    vlm.model.load_state_dict(module.model.state_dict())
    right = []
    for i, rows in enumerate(batch["questions"]):
        for row in rows:
            answer = vlm.generate(vlm.inputs([cache[i].picture()], [row["question"]]), max_new_tokens=4)[0]
            right.append(exact_match(answer, [row["answer"]]))
    assert score == pytest.approx(sum(right) / len(right)) and score > 0


def test_strided_tokens_form_a_regular_grid():
    for _ in range(8):
        index = strided((24, 24), 2)
        rows, columns = index // 24, index % 24
        assert len(index) == 144
        assert len(set(rows.tolist())) == 12 and len({r % 2 for r in rows.tolist()}) == 1
        assert len(set(columns.tolist())) == 12 and len({c % 2 for c in columns.tolist()}) == 1


def test_evidence_layers_need_a_layer_on_either_side(prepared):
    with pytest.raises(ValueError, match="has 2"):
        InstructionModule(prepared[0], evidence_weight=0.5)


def test_samples_make_the_batches_of_a_module(prepared):
    """Shards' samples train as the testbed's own scenes do: same pixels, questions, regions and evidence."""
    checkpoint, batch, cache = prepared
    module = InstructionModule(checkpoint)
    made = module.collate(samples("train", 4))
    rows = {row["question"]: row for row in cache[0].questions}
    for (row,), pixels, grid in zip(made["questions"], made["pixels"], made["grids"]):
        known = rows[row["question"]]
        assert {k: row[k] for k in ("kind", "answer", "region")} == {k: known[k] for k in ("kind", "answer", "region")}
        assert torch.equal(row["evidence"].any(0), known["evidence"].any(0))
        assert grid == batch["grids"][0]
        with torch.no_grad():
            found, cached = (module.vlm.encode_prepared([one], [grid])[0] for one in (pixels, batch["pixels"][0]))
        assert pixels.dtype == torch.uint8 and (found - cached).abs().mean() < 0.02 * cached.abs().mean()
    losses = _losses(module, made)
    assert losses[-1] < 0.7 * losses[0]


def test_repeated_samples_are_not_scored(prepared):
    module = InstructionModule(prepared[0]).eval()
    one = samples("train", 3)
    with torch.no_grad():
        module.validation_step(module.collate(one), 0)
        assert int(module.accuracy.counts[:, 1].sum()) == 3
        loss, tokens = float(module.loss.compute()), int(module.loss.weight)
        module.validation_step(module.collate([*one, replace(one[0], valid=False)]), 0)
        module.validation_step(module.collate([replace(one[0], valid=False)]), 0)  # not one token counts
    assert int(module.accuracy.counts[:, 1].sum()) == 6
    assert float(module.loss.compute()) == pytest.approx(loss, rel=1e-5) and int(module.loss.weight) == 2 * tokens > 0


@pytest.fixture(scope="module")
def localizer(tmp_path_factory):
    torch.manual_seed(0)
    return LocalizerModule(str(build_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"), layers=2, width=64)))


def _text(key="text"):
    empty = {"boxes": [], "width": 0, "height": 0, "image": None, "source": "texts"}
    return replace(
        samples("train", 1)[0], key=key, region=Region.full(), question="How many?", answers=["yes"],
        followups=[("What is it?", "red star")], **empty,
    )  # fmt: skip


def test_a_localizer_learns_answers_where_there_are_no_boxes(localizer):
    one, two = samples("train", 2)
    batch = localizer.collate([_text(), one, replace(two, boxes=[], region=Region.full())])
    rows = [localizer._rows(batch, 1)]
    localizer.train()
    rows.append(localizer._rows(batch, 1))
    for each in rows:
        row_T, turn_T = places(each.packed)
        labels_T = each.packed.labels_BS[each.packed.turn_BS >= 0]
        learnt = {}
        for b, asked in enumerate(each.asked):
            for n, row in enumerate(asked):
                ids = labels_T[(row_T == b) & (turn_T == n)]
                learnt[row["key"]] = localizer.tokenizer.decode(ids).replace(" ", "").lower()
        a, b, c, d = one.region.as_tuple()
        end = "<|im_end|>"
        assert learnt == {
            "text": f"yes{end}redstar{end}",
            one.key: f"<x_{a}><y_{b}><x_{c}><y_{d}>.{end}",
            two.key: f"{two.answers[0]}{end}",
        }
    losses = _losses(localizer, batch)
    assert losses[-1] < 0.8 * losses[0]


def test_regions_come_in_the_order_of_the_questions(localizer, monkeypatch):
    """Whatever rows they were packed in; None for what has no region."""
    localizer.eval()
    asked = samples("val", 12)[::4]
    alone = [localizer.locate(localizer.collate([one]))[0] for one in asked]
    assert len(set(alone)) > 1
    batch = localizer.collate([asked[0], _text(), asked[1], asked[2]])
    assert localizer.locate(batch) == [alone[0], None, *alone[1:]]
    monkeypatch.setattr("cropl.modules.instruction.rows_of", lambda lengths: [[2, 0], [1]])
    assert localizer.locate(batch) == [alone[0], None, *alone[1:]]
    assert localizer.validation_step(batch, 0)["regions"] == [alone[0], None, *alone[1:]]
    assert localizer.recall.compute()["n"] == 3
    localizer.recall.reset()
    monkeypatch.undo()
    assert localizer.validation_step(localizer.collate([_text()]), 0) == {"regions": [None]}


def test_rows_that_are_shared_train_the_same(tmp_path, monkeypatch):
    """Loss and evidence of three documents in one row, in three, and in two in another order."""
    checkpoint = str(build_qwen2_vl(tmp_path, layers=4, width=64))
    module = InstructionModule(checkpoint, evidence_weight=0.5, evidence_layers=(1, 2)).train()
    module.log = module.log_dict = lambda *args, **kwargs: None
    batch = module.collate([_text(), *samples("train", 3)[::2]])
    losses = []
    for rows in ([[0], [1], [2]], [[0, 1, 2]], [[2, 0], [1]]):
        monkeypatch.setattr("cropl.modules.instruction.rows_of", lambda lengths, rows=rows: rows)
        losses.append(module.training_step(batch, 0).item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_a_conversation_is_right_where_all_its_answers_are(prepared):
    module = InstructionModule(prepared[0]).train()
    _losses(module, module.collate([_text()]), steps=25)
    module.eval()
    scores = []
    for followup in ("red star", "red square"):
        batch = module.collate([replace(_text(), followups=[("What is it?", followup)])])
        with torch.no_grad():
            module.validation_step(batch, 0)
        scores.append(float(module.accuracy.compute()["accuracy"]))
        assert int(module.accuracy.counts[:, 1].sum()) == 1
        module.accuracy.reset()
    assert scores == [1, 0]
