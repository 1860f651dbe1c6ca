"""Two sharded ranks train as one process does, and stop together."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from cropl.parallel import consolidate
from tests.distributed.worlds import GLOBAL_BATCH, MICRO_BATCH, Job, finish, module_of, results, start, train

WEIGHTS = 5e-5  # Adam divides rounding by rounding where a gradient is nearly zero
TIMEOUT = {"timeout_seconds": 60}


@pytest.fixture(scope="module")
def one(job: dict[str, Job]) -> dict[str, dict[str, Any]]:
    """Each kind on one process, without a strategy."""
    jobs = job["instruction"].on("one", strategy=None, save="one.ckpt"), job["localizer"]
    return {name: train(each) for name, each in zip(("instruction", "localizer"), jobs)}


@pytest.fixture(scope="module")
def two(job: dict[str, Job]) -> dict[str, list[dict[str, Any]]]:
    """On two ranks; in the end data fail on one of them, and both must stop within a minute, and say so."""
    jobs = [
        job["instruction"].on("instruction", save="sharded.ckpt"),
        job["localizer"].on("localizer", options={**job["localizer"].options, "activation_checkpointing": True}),
        job["instruction"].on("bfloat16", steps=2, strategy={**TIMEOUT, "compute_dtype": "bfloat16"}),
    ]
    fault = job["instruction"].on("fault", strategy={"timeout_seconds": 1800}, fault=1)
    ended = finish(start([*jobs, fault]), 500)
    last = (jobs[-1].out / f"{jobs[-1].name}.1.pt").stat().st_mtime
    assert time.time() - last < 60
    assert [code for code, _ in ended] == [1, 1], ended[0][1][-4000:]
    assert "the disk of this rank is broken" in ended[1][1] and "Connection closed by peer" in ended[0][1]
    return {each.name: results(each) for each in jobs}


@pytest.mark.parametrize("kind", ["instruction", "localizer"])
def test_two_ranks_train_as_one_process(
    kind: str, one: dict[str, dict[str, Any]], two: dict[str, list[dict[str, Any]]]
) -> None:
    alone, ranks = one[kind], two[kind]
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-5) and len(rank["losses"]) == 4
        assert rank["scores"] == [pytest.approx(alone["scores"][0], rel=1e-5)]
        assert rank["unchanged"] and alone["unchanged"]
    first = ranks[0]["weights"]
    assert set(first) == set(alone["weights"])
    for name, value in alone["weights"].items():
        assert (first[name] - value).abs().max() < WEIGHTS, name
    if kind == "localizer":
        assert 0.1 < alone["scores"][0]["val/mean_recall"] < 1
        assert first["model.lm_head.weight"].equal(first["model.model.language_model.embed_tokens.weight"])


def test_ranks_share_each_global_batch(one: dict[str, dict[str, Any]], two: dict[str, list[dict[str, Any]]]) -> None:
    """Accumulated, with unequal texts, and with pictures on one rank alone."""

    def steps(batches: list[list[tuple[str, bool]]], micro_steps: int) -> list[list[str]]:
        joined = [sum(batches[i : i + micro_steps], []) for i in range(0, len(batches), micro_steps)]
        return [[key for key, _ in batch] for batch in joined]

    whole = steps(one["instruction"]["batches"], GLOBAL_BATCH // MICRO_BATCH)
    shares = [steps(rank["batches"], GLOBAL_BATCH // MICRO_BATCH // 2) for rank in two["instruction"]]
    assert [sorted(batch) for batch in whole] == [sorted(a + b) for a, b in zip(*shares)]
    shown = [[any(has for _, has in batch) for batch in rank["batches"]] for rank in two["instruction"]]
    assert any(a != b for a, b in zip(*shown)) and any(a == b for a, b in zip(*shown))


def test_bfloat16_computes_over_float32_weights(
    one: dict[str, dict[str, Any]], two: dict[str, list[dict[str, Any]]]
) -> None:
    exact = {step: one["instruction"]["losses"][step] for step in (1, 2)}
    for rank in two["bfloat16"]:
        assert rank["dtypes"] == {"torch.float32"} and rank["unchanged"]
        assert rank["losses"] == pytest.approx(exact, rel=1e-2) and rank["losses"] != pytest.approx(exact, rel=1e-5)


def test_one_file_of_a_sharded_checkpoint(
    job: dict[str, Job], one: dict[str, dict[str, Any]], two: dict[str, list[dict[str, Any]]]
) -> None:
    """It loads where there is one process, and holds what that would have saved."""
    out = job["instruction"].out
    file = consolidate(out / "sharded.ckpt")
    assert file == out / "sharded.full.ckpt" and not list(out.glob(".sharded*"))
    made, alone = (torch.load(path, weights_only=True) for path in (file, out / "one.ckpt"))
    assert set(made) == set(alone) and set(made["state_dict"]) == set(alone["state_dict"])
    module = module_of(job["instruction"])
    module.on_load_checkpoint(made)
    module.load_state_dict(made["state_dict"], strict=False)
    own = module.state_dict()
    for name, value in alone["state_dict"].items():
        assert own[name].equal(made["state_dict"][name]) and (own[name] - value).abs().max() < WEIGHTS
    (state,), (expected,) = made["optimizer_states"], alone["optimizer_states"]
    assert [group["params"] for group in state["param_groups"]] == [g["params"] for g in expected["param_groups"]]
    for number, moments in expected["state"].items():
        for name, value in moments.items():
            assert torch.allclose(state["state"][number][name], value, rtol=1e-3, atol=1e-6), (number, name)
