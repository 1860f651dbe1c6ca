"""What the page's server answers: as `cropl ask` does, with the user's region, under every method."""

from __future__ import annotations

import pytest

from cropl.cli import main
from cropl.errors import UsageError
from cropl.evaluation.costs import fixed_costs
from cropl.grid import Region
from cropl.integrations.demo.asked import METHODS, Asked
from cropl.integrations.demo.engine import Engine
from cropl.integrations.demo.locating import Locator, coverage
from cropl.integrations.demo.measuring import Cancelled
from cropl.models.region_distribution import RegionDistribution
from cropl.models.vlm import load_vlm
from cropl.testbed import weights
from tests.integrations.demo.conftest import QUESTION


def area(mask):
    return sum(width * height for _, _, width, height in mask["kept"])


@pytest.mark.parametrize("region", [None, [1, 5, 3, 7]])
def test_it_answers_as_the_command_line_does(client, ask, photo, capsys, region):
    flags = [] if region is None else ["--region", ",".join(map(str, region))]
    assert main(["ask", str(photo), QUESTION, "--compare", "--device", "cpu", *flags]) == 0
    told = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    uploaded = client.post("/api/pictures?name=scene.png", content=photo.read_bytes()).json()
    got = ask(picture=uploaded["id"], region=region)
    assert told["region"].startswith(",".join(map(str, got["pruned"]["region"])))
    assert told["tokens"].startswith(f"{got['pruned']['kept']} of {got['pruned']['total']}")
    assert (told["answer"], told["dense"]) == (got["pruned"]["answer"], got["dense"]["answer"])
    assert (region is None) == (got["pruned"]["region"] == got["located"]["region"])


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("plc", "dense", "ilp", "prune")])
def test_every_method_keeps_its_budget(ask, method):
    got = ask(method=method, budget=64, max_new_tokens=2)["pruned"]
    assert got["kept"] == 64 and got["total"] == 576 and got["region"] is None
    if got["mask"] is None:  # its tokens are merged ones
        assert method == "visionzip"
    else:
        cell = (1000 / 576**0.5) ** 2 / (299 / 448)  # the picture is padded to a square
        assert area(got["mask"]) / cell == pytest.approx(64, abs=0.5)


def test_a_budget_and_a_layer_go_with_a_region(ask):
    got = ask(region=[2, 1, 4, 3], budget=50, layer=3)["pruned"]
    assert (got["kept"], got["layer"], got["layer_average"]) == (50, 3, (3 * 576 + 3 * 50) / 6)
    assert ask(region=[2, 1, 4, 3], layer=6)["pruned"]["answer"] == ask(method="dense")["dense"]["answer"]
    full = ask(region=[0, 0, 7, 7], layer=0)
    same = ("answer", "kept", "prefill_flops", "kv_bytes")
    assert [full["pruned"][name] for name in same] == [full["dense"][name] for name in same]


def test_costs_are_those_of_an_evaluation(engine, ask):
    got = ask()
    fixed = fixed_costs({None: engine.vlm}, [], [engine.vlm.token_maps([(299, 448)])[0]], None)
    pruned, dense = got["pruned"], got["dense"]
    assert pruned["with_vision"] - pruned["prefill_flops"] == fixed.vision[None]
    assert pruned["with_localizer"] > pruned["with_vision"] and dense["with_localizer"] == dense["with_vision"]
    assert ask(region=[2, 1, 4, 3])["pruned"]["with_localizer"] == ask(region=[2, 1, 4, 3])["pruned"]["with_vision"]
    assert pruned["kv_bytes"] / dense["kv_bytes"] == pytest.approx(pruned["layer_average"] / 576, abs=0.05)
    assert 0 < pruned["prefill_seconds"] <= pruned["seconds"]


def test_the_localizers_time_counts_where_it_told_the_region(ask):
    got = ask()
    pruned, dense, localizing = got["pruned"], got["dense"], got["located"]["seconds"]
    assert localizing > 0 and pruned["localized_seconds"] == pytest.approx(pruned["seconds"] + localizing)
    assert dense["localized_seconds"] is None
    for given in ({"region": [2, 1, 4, 3]}, {"method": "vispruner", "budget": 64}):
        assert ask(**given)["pruned"]["localized_seconds"] is None


def test_the_map_is_the_probability_that_the_region_covers_a_block(engine, ask):
    picture = engine.pictures["scene-5"].image
    distribution = engine.locator.localizer.distribution([picture], [QUESTION])
    heat = coverage(distribution)
    for i, j in ((3, 3), (7, 2), (0, 7)):
        covering = [
            Region(x, y, u, v) for x in range(i + 1) for y in range(j + 1) for u in range(i, 8) for v in range(j, 8)
        ]
        repeated = RegionDistribution(distribution.p_BXYUV.expand(len(covering), -1, -1, -1, -1))
        assert heat[j][i] == pytest.approx(sum(repeated.probability(covering)), abs=1e-9)
    assert ask()["located"]["heat"] == [[round(p, 4) for p in row] for row in heat]


def test_a_localizer_that_fails_keeps_every_token(engine, client, ask, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(engine.locator.localizer, "locate", fail)
    got = ask(question="Is there a red heart?", budget=20)
    assert "no memory left" in got["located"]["message"] and "every token is kept" in got["located"]["message"]
    assert got["pruned"]["kept"] == 576 and got["pruned"]["answer"] == got["dense"]["answer"]
    assert got["pruned"]["localized_seconds"] is None
    monkeypatch.undo()
    assert ask(question="Is there a red heart?")["located"]["message"] == ""


def test_a_model_with_a_compressor(engine):
    folder = weights.resolve("testbed:plc")
    other = Engine(load_vlm(folder, device="cpu"), Locator(), folder, {"model": "testbed:plc"}, engine.pictures)
    assert other.state()["method"] == "plc" and not other.state()["localizes"]
    asked = Asked("scene-5", QUESTION, "plc", region=Region(2, 2, 7, 4))
    other.check(asked)
    events = [event["pruned"] for event in other.answer(asked, lambda: False) if "pruned" in event]
    assert events[0]["kept"] == 68 and events[0]["mask"]["kept"] and events[0]["answer"] == "park"
    with pytest.raises(UsageError, match="draw a region"):
        other.check(Asked("scene-5", QUESTION, "ilp"))


def test_a_cancelled_question_stops(engine):
    with pytest.raises(Cancelled):
        list(engine.answer(Asked("scene-5", QUESTION), lambda: True))
    calls = iter([False] * 4)
    with pytest.raises(Cancelled):  # in the middle of the words
        list(engine.answer(Asked("scene-5", QUESTION), lambda: next(calls, True)))
    assert list(engine.answer(Asked("scene-5", QUESTION), lambda: False))[-1]["dense"]["answer"] == "park"
