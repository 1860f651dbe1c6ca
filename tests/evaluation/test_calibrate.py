"""Calibration: its promise on drawn questions, its scores against their definition, and the command on the testbed."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropl.cli import main
from cropl.errors import UsageError
from cropl.evaluation.calibrate import Goal, calibrate, fit_level, least_level, measure, wilson
from cropl.evaluation.calibration_report import draw, guarantee, table
from cropl.grid import Region, TokenGrid
from cropl.models.localizer import Localizer
from cropl.models.region_distribution import Readout, RegionDistribution
from cropl.pruning import keep_mask
from cropl.testbed.samples import samples


def distributions(count: int, seed: int, sharp: float = 2.0) -> RegionDistribution:
    draw = torch.Generator().manual_seed(seed)
    return RegionDistribution.from_logits(*(sharp * torch.randn(count, *[8] * n, generator=draw) for n in range(1, 5)))


def truths(known: RegionDistribution, seed: int, honest: bool = True) -> list[Region]:
    """One region for each, drawn from what the localizer believes, or of any size at all."""
    draw = torch.Generator().manual_seed(seed)
    p = known.p_BXYUV if honest else (known.p_BXYUV > 0).double()
    drawn = torch.multinomial(p.flatten(1), 1, generator=draw)[:, 0]
    return [Region(*(int(i) // 8**power % 8 for power in (3, 2, 1, 0))) for i in drawn]


@settings(max_examples=40)
@given(st.integers(0, 1000), st.sampled_from([0.5, 0.7, 0.9, 1.0]))
def test_a_score_is_the_least_level_that_holds_from_there_on(seed, recall):
    known, goal = distributions(1, seed), Goal(0.9, recall)
    (truth,) = truths(known, seed, honest=seed % 2 == 0)
    (ladder,) = known.ladder()
    score = least_level(ladder, truth, goal)
    assert 0 <= score <= 1
    levels = sorted({at for at, _ in ladder} | {math.nextafter(at, 1) for at, _ in ladder} | {score})
    for level in [level for level in levels if level <= 1]:
        (region,) = known.read(f"expected_recall:{level!r}")
        if level >= score:
            assert goal.holds(region, truth)
    if score > 0:
        (region,) = known.read(f"expected_recall:{math.nextafter(score, 0)!r}")
        assert not goal.holds(region, truth)


@pytest.mark.parametrize("honest", [True, False])
def test_the_promise_holds_for_new_questions(honest):
    """The mean coverage over 300 calibrations on 19 questions each: at least 0.8, and at most 1 / 20 more."""
    goal, rng = Goal(0.8, 0.9), random.Random(0)
    known = distributions(400, 0)
    truth = truths(known, 1, honest)
    scores = [least_level(ladder, each, goal) for ladder, each in zip(known.ladder(), truth)]
    held = []
    for _ in range(300):
        chosen = rng.sample(range(400), 20)
        level = sorted(scores[i] for i in chosen[:19])[goal.rank(19) - 1]
        held.append(scores[chosen[19]] <= level)
    low, high = wilson(sum(held), 300)
    assert high >= 0.8 and low <= 0.8 + 1 / 20
    for start in range(3):  # what is fitted is that level, and it is read as the scores say
        part = slice(40 * start, 40 * start + 19)
        level = fit_level(known[part], truth[part], goal)
        assert level == sorted(scores[part])[goal.rank(19) - 1]
        new = slice(40 * start + 19, 40 * start + 40)
        for region, each, score in zip(known[new].read(f"expected_recall:{level!r}"), truth[new], scores[new]):
            assert score > level or goal.holds(region, each)


@given(st.integers(1, 400), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_ranks_follow_the_rule_exactly(n, share):
    goal, exact = Goal(share), Fraction(str(share))
    least = goal.least_questions()
    assert (least + 1) * exact <= least and (least * exact > least - 1)
    if n < least:
        with pytest.raises(UsageError, match=f"{n} calibration question.*at least {least}"):
            goal.rank(n)
    else:
        assert goal.rank(n) - 1 < (n + 1) * exact <= goal.rank(n) <= n


def test_recall_is_compared_exactly():
    assert Goal(0.9, 0.9).holds(Region(0, 0, 0, 6), Region(0, 0, 0, 6))
    ten = Region(0, 0, 4, 1)
    assert [Goal(0.9, recall).holds(Region(0, 0, 4, 0), ten) for recall in (0.4, 0.5, 0.6)] == [True, True, False]
    assert not Goal(0.9, 0.9).holds(Region(0, 0, 7, 6), Region.full())


def test_wilson_by_hand():
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4) and wilson(20, 20)[1] == pytest.approx(1)


@pytest.mark.parametrize(("share", "recall"), [(1, 0.9), (0, 0.9), (0.9, 0), (0.9, 1.1), (True, 0.9), ("much", 0.9)])
def test_a_goal_is_a_share(share, recall):
    with pytest.raises(UsageError, match="calibrate: (share|recall)"):
        Goal(share, recall)


def test_a_calibration_is_checked_on_fresh_questions(tiny_localizer, tmp_path):
    localizer = Localizer.from_pretrained(tiny_localizer)
    found = calibrate(localizer, samples("val", 9), samples("test", 6), Goal(0.9, 0.5), batch=4)
    assert found["rank"] == 9 and [row["readout"] for row in found["rows"]] == [
        "greedy", "most_probable", "expected_recall:0.5", found["readout"]
    ]  # fmt: skip
    fresh = samples("test", 6)
    known = localizer.distribution([sample.image for sample in fresh], [sample.question for sample in fresh])
    for row in found["rows"]:
        held = [Goal(0.9, 0.5).holds(r, s.region) for r, s in zip(known.read(row["readout"]), fresh)]
        assert row["covered"] == pytest.approx(sum(held) / 6, abs=0.17)  # equal but for rounding at a tie
    assert "marginal" in guarantee(found) and "9 calibration questions" in guarantee(found)
    runs = [{"max_pixels": 1000, **found}, {"max_pixels": 2000, **found}]
    assert table(runs).row_count == 8 and len(table(runs).columns) == len(table(runs[:1]).columns) + 1
    for part in (runs, runs[:1]):
        assert draw(part, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="3 questions, 'val-.* are in both sets"):
        calibrate(localizer, samples("val", 9), samples("val", 3), Goal(0.9))


def test_the_command_writes_what_it_finds(tiny_localizer, tmp_path, capsys):
    flags = ["--localizer", tiny_localizer, "--data.calibrate", "testbed:val:9", "--data.check", "testbed:test:2"]
    out = ["--out", str(tmp_path / "out")]
    assert main(["calibrate", *flags, *out, "--write", str(tmp_path / "copy")]) == 0
    told = capsys.readouterr().out
    results = json.loads((tmp_path / "out/calibration.json").read_text())
    (run,) = results["runs"]
    assert run["n"] == 9 and run["fresh"] == 2 and results["guarantee"].startswith("Over draws")
    assert (tmp_path / "out/calibration.png").exists() and "calibrated" in told and "marginal" in told
    assert str(Localizer.from_pretrained(str(tmp_path / "copy")).readout) == run["readout"]
    assert (tmp_path / "copy/model.safetensors").read_bytes() == Path(tiny_localizer, "model.safetensors").read_bytes()
    assert main(["calibrate", *flags, *out, "--write", str(tmp_path / "copy")]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_level_is_written_with_the_size_that_it_was_fitted_at(tiny_localizer, tmp_path):
    flags = ["--localizer", tiny_localizer, "--data.calibrate", "testbed:val:9", "--data.check", "testbed:test:1"]
    at = ["--max_pixels", "20000", "--write", str(tmp_path / "copy"), "--out", str(tmp_path / "out")]
    assert main(["calibrate", *flags, *at]) == 0
    (run,) = json.loads((tmp_path / "out/calibration.json").read_text())["runs"]
    assert run["max_pixels"] == 20000 < Localizer.from_pretrained(tiny_localizer).vlm.max_pixels
    assert Localizer.from_pretrained(str(tmp_path / "copy")).vlm.max_pixels == 20000
    assert main(["calibrate", "--localizer", str(tmp_path / "copy"), *flags[2:], "--out", str(tmp_path / "again")]) == 0
    (again,) = json.loads((tmp_path / "again/calibration.json").read_text())["runs"]
    assert (again["level"], again["max_pixels"]) == (run["level"], 20000)


@pytest.mark.parametrize("readout", ["greedy", "expected_recall:0.6", "expected_recall:1"])
def test_tokens_are_those_that_ilp_keeps(readout):
    """The full region keeps the padding of a wide or tall picture too."""
    known = distributions(6, 3)
    asked = [
        replace(sample, width=width, height=height)
        for sample, (width, height) in zip(samples("test", 6), [(640, 320), (320, 640), (500, 500)] * 2, strict=True)
    ]
    row = measure(Readout.parse(readout), known, asked, Goal())
    kept = [
        int(keep_mask(region, TokenGrid.padded_square(24, sample.width, sample.height), None).sum())
        for region, sample in zip(known.read(readout), asked)
    ]
    assert row.tokens == sum(kept) / 6
    assert (row.tokens == 576) == (readout == "expected_recall:1")


def test_questions_of_shards_come_once_for_each_picture(tmp_path):
    from cropl.commands.calibrate import _questions
    from cropl.data.writer import ShardWriter

    made = samples("val", 12)
    with ShardWriter(tmp_path / "shards") as writer:
        for sample in made:
            writer.write(sample)
    pictures = len({id(sample.image) for sample in made})
    chosen = _questions("check", str(tmp_path / "shards"))
    assert len(chosen) == pictures < 12 and {sample.key for sample in chosen} <= {sample.key for sample in made}
    assert [s.key for s in _questions("check", f"{tmp_path / 'shards'}:1")] == [chosen[0].key]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--share", "1"], "share 1"),
        (["--data.calibrate", "testbed:val:8"], "8 calibration questions.*at least 9"),
        (["--data.calibrate", "testbed:val"], "testbed:SPLIT:COUNT"),
        (["--data.check", "nowhere"], "nowhere"),
        (["--datum", "x"], "unknown key 'datum'; did you mean 'data'"),
        (["--data.fresh", "x"], "unknown key 'fresh'"),
        (["--max-pixels", "0"], "max_pixels 0"),
        (["--max-pixels", "[20000, 30000]", "--write", "new"], "one alone with --write"),
        (["-c", "testbed/study"], "unknown key"),
    ],
)
def test_a_slip_is_one_line(flags, said, tmp_path, capsys):
    import re

    few = [] if "--data.calibrate" in flags else ["--data.calibrate", "testbed:val:9"]
    check = [] if "--data.check" in flags else ["--data.check", "testbed:test:1"]
    code = main(["calibrate", *flags, *few, *check, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(error) == 1 and re.search(said, error[0]), error


def test_the_shipped_recipe_is_read():
    from cropl import recipe
    from cropl.commands.calibrate import read

    options = read(recipe.load(["evaluate/localizer_resolution"]))
    assert options.max_pixels == [18432, 24576, 36864] and set(options.data) == {"calibrate", "check"}
