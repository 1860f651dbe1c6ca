"""Compiled static shapes: one compilation per bucket and none per region, and the answers of the plain path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from cropl.grid import Region
from cropl.pruning import ILP
from cropl.pruning.static import StaticRunner
from tests.families import FAMILIES
from tests.pruning.rows import request, together
from tests.reference.tiny import FULL, SMALL, WIDE, batch, pixels, prompt, tiny_llava

CAPTURE = {"backend": "eager"}
"""Captured, guarded and kept as inductor's graphs are, and then run as they are."""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """How many graphs were compiled since the test began."""
    return int(counters["stats"]["unique_graphs"])


def row(length: int = 5, seed: int = 0) -> dict[str, Any]:
    return {"input_ids": prompt(length, seed=seed)[None], "pixel_values": pixels(1, seed=seed)}


def test_a_new_region_compiles_nothing() -> None:
    model = tiny_llava(2, 2)
    runner = StaticRunner(model, ILP(1), 2, (48, 80), compile=CAPTURE)
    plain = StaticRunner(model, ILP(1), 2, (48, 80), compile=False)
    runner.generate(row(), regions=[SMALL])
    assert graphs() == 5  # two stages, a prefill and a step of each, and the head
    regions = [Region(x, y, x + w, y + h) for x, y, w, h in [(0, 0, 0, 0), (7, 7, 0, 0), (1, 2, 3, 4)]]
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed, region in enumerate([*regions, WIDE, SMALL]):
            given = row(3 + seed, seed)  # another prompt and its length, too
            ids = runner.generate(given, regions=[region])
            assert ids.tolist() == plain.generate(given, regions=[region]).tolist()
        with pytest.raises(RuntimeError, match="recompile"):
            runner.generate(row(), regions=[FULL])  # the first one of another bucket
    assert graphs() == 5


def test_every_bucket_is_kept() -> None:
    runner = StaticRunner(tiny_llava(1, 2), ILP(0), 2, (16, 24), compile=CAPTURE)
    with torch._dynamo.config.patch(recompile_limit=1):  # of one function, as torch.compile counts them
        for region in (SMALL, WIDE):
            runner.generate(row(), regions=[region])
        assert graphs() == 5  # a prefill and a step at both lengths, and the head
        with torch.compiler.set_stance("fail_on_recompile"):
            for region in (SMALL, WIDE):
                runner.generate(row(), regions=[region])
    assert graphs() == 5


@pytest.mark.slow
def test_many_buckets_and_batch_sizes_are_kept() -> None:
    runner = StaticRunner(tiny_llava(2, 2), ILP(1), 2, tuple(range(12, 80, 4)), compile=CAPTURE)
    regions = [Region(0, 0, 7, height) for height in range(8)] + [Region(0, 0, 3, height) for height in (0, 2, 4, 6)]
    two = {**batch([prompt(5), prompt(5, seed=1)]), "pixel_values": pixels(2)}
    for region in regions:
        runner.generate(row(), regions=[region])
    made = graphs()
    assert made > 2 * torch._dynamo.config.recompile_limit
    runner.generate(two, regions=[SMALL, SMALL])
    assert graphs() == made + 5
    with torch.compiler.set_stance("fail_on_recompile"):
        for region in reversed(regions):
            runner.generate(row(), regions=[region])
        runner.generate(two, regions=[SMALL, regions[0]])


def test_callers_in_other_modes_share_what_was_compiled() -> None:
    runner = StaticRunner(tiny_llava(1, 2), ILP(0), 2, (48,), compile=CAPTURE)
    ids = runner.generate(row(), regions=[SMALL])
    with torch.compiler.set_stance("fail_on_recompile"):
        for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
            with mode:
                assert runner.generate(row(), regions=[SMALL]).tolist() == ids.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_captured(family) -> None:
    vlm = FAMILIES[family](3)
    found = request(vlm)
    buckets = (64, 128, 256, 512)
    runner = StaticRunner(vlm, ILP(1, "compact"), 4, buckets, compile={"backend": "aot_eager"})
    plain = StaticRunner(vlm, ILP(1, "compact"), 4, buckets, compile=False)
    for _ in range(2):
        assert runner.generate(together(vlm), **found).tolist() == plain.generate(together(vlm), **found).tolist()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_inductor_gives_the_same_answers() -> None:
    model = tiny_llava(3, 2, torch.float32)
    runner = StaticRunner(model, ILP(1), 4, (16, 96))
    plain = StaticRunner(model, ILP(1), 4, (16, 96), compile=False)
    rows = {**batch([prompt(5), prompt(9, seed=1)]), "pixel_values": pixels(2, torch.float32)}
    seen: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}
    for number, regions in enumerate([[SMALL, Region(0, 0, 1, 1)], [FULL, WIDE], [Region(3, 3, 4, 4), SMALL]]):
        with torch.compiler.set_stance("default" if number < 2 else "fail_on_recompile"):
            ours = runner.generate(rows, regions=regions, watch=lambda x: seen["ours"].append(x.clone()))
        theirs = plain.generate(rows, regions=regions, watch=lambda x: seen["theirs"].append(x.clone()))
        assert ours.tolist() == theirs.tolist()
    torch.testing.assert_close(torch.stack(seen["ours"]), torch.stack(seen["theirs"]), atol=1e-4, rtol=1e-4)
