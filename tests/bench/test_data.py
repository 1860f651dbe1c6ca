"""The speed of the data path: its figures belong together, its report is whole, and slips are one clear line."""

import json
from pathlib import Path
from typing import Any

import pytest

from cropl import cli
from cropl.bench import plain
from cropl.bench.data import ALONE, STAGES, TOGETHER, DataBench, Flow, measure, report
from cropl.bench.inputs import checkpoint_processor, published_processor, write_photographs
from cropl.data.sample import Sample
from cropl.data.shards import ShardReader
from cropl.data.writer import ShardWriter
from cropl.grid import Region
from cropl.models.vlm import load_vlm
from cropl.testbed import weights

TINY = ("--samples", "8", "--batch", "2", "--rounds", "1", "--workers", "2", "--worker-batches", "3")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "shards"
    write_photographs(folder, 8, 2)
    return folder


def test_the_command_measures_photographs_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "data.json"
    assert cli.main(["bench", "data", *TINY, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    made = json.loads(out.read_text())
    assert {"hardware", "cores", "versions", "commit", "load", "image_bytes", "rounds"} <= set(made)
    assert (made["data"], made["processor"], made["samples"], made["workers"]) == ("photographs", "testbed:llava", 8, 2)
    assert made["versions"]["torch"] and made["hardware"]
    assert 30_000 < made["image_bytes"] < 400_000 and max(made["width"], made["height"]) <= 640
    assert list(made["alone"]) == list(ALONE) and list(made["together"]) == list(TOGETHER)
    assert all(row["cpu_us"] > 0 and len(row["rounds_cpu_us"]) == 1 for row in made["alone"].values())
    assert all(row["cpu_us"] > 0 and row["samples_per_s"] > 0 for row in made["together"].values())
    assert sum(made["alone"][name]["share"] for name in STAGES) == pytest.approx(1)
    assert all(ratio > 0 for ratio in made["ratios"].values())
    assert f"bound by: {made['bound']} (" in shown and "2 workers: " in shown and shown.count("webdataset, ") >= 5
    assert all(name in shown for name in ALONE if not name.startswith(("stream", "webdataset s")))


def test_ratios_are_what_their_names_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(scale: float) -> dict[str, float]:
        times = (1e-5, 3e-5, 5e-5, 1e-5, 2e-4, 4e-5, 5e-4)  # in the order of ALONE
        return {name: scale * time for name, time in zip(ALONE, times)}

    flows = {
        "stream": [Flow(8000, 1e-4), Flow(2000, 3e-4), Flow(6000, 2e-4)],
        "unsent": [Flow(7500, 1e-4)] * 3,
        "webdataset stream": [],
    }
    made = report([spent(1), spent(100), spent(0.5)], flows, workers=2)
    assert made["alone"]["processor"]["cpu_us"] == pytest.approx(50)
    assert made["alone"]["processor"]["share"] == pytest.approx(0.5)
    assert made["alone"]["stream"]["samples_per_s"] == pytest.approx(5000)
    assert made["together"]["stream"]["samples_per_s_per_worker"] == 3000
    assert made["together"]["webdataset stream"]["samples_per_s"] is None
    assert made["bound"] == "processor"
    assert made["ratios"] == pytest.approx(
        {
            "stream": 0.5,
            "workers": 0.6,
            "sent": 0.8,
            "webdataset_read": 4,
            "webdataset_stream": 2.5,
            "webdataset_workers": None,
        }
    )

    from cropl.commands.bench_data import conclusions

    lines = conclusions({**made, "workers": 2, "load": [0.0, 9.0]})
    assert lines[0] == "bound by: processor (50 % of the stages' CPU time)"
    assert lines[1] == "one process: 0.50 of 1 / (sum of the stages) - BELOW 0.95"
    assert lines[2].startswith("2 workers: 0.80 of what they reach when no batch is sent - BELOW 0.95; 0.60 of 2 x one")
    assert lines[3] == "webdataset, reading: cropl is 4.00 times as fast"
    assert "not measured" in lines[5] and "busy" in lines[6]


def test_both_pipelines_make_the_same_batches(shards: Path) -> None:
    """Else their speeds could not be compared."""
    bench = DataBench(shards, published_processor("llava-1.5"), 8, 4, 1, 3)
    theirs = {
        row["key"]: (row["question"], pixels)
        for batch in plain.batches(bench.files, 4, bench.collate)
        for (row,), pixels in zip(batch["questions"], batch["pixels"])
    }
    reader = ShardReader(shards)
    assert sorted(bench.index_BM.ravel().tolist()) == list(range(8)) and len(theirs) == 8
    for index in range(8):
        batch = bench.collate([reader[index]])
        question, pixels = theirs[reader.key(index)]
        assert batch["questions"][0][0]["question"] == question and batch["pixels"][0].equal(pixels)


def test_fewer_shards_than_workers_and_texts_alone(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "texts") as writer:
        for number in range(6):
            writer.write(Sample(f"t{number}", "Why?", ["So."], [], 0, 0, Region.full(), "", "texts", "train", None))
    made = measure(DataBench(tmp_path / "texts", published_processor("llava-1.5"), 6, 2, 2, 3), rounds=1)
    assert made["together"]["webdataset stream"]["samples_per_s"] is None
    assert made["ratios"]["webdataset_stream"] > 0 and made["ratios"]["workers"] > 0
    assert made["image_bytes"] == 0


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_a_processor_without_weights_is_that_of_the_model(name: str, shards: Path) -> None:
    picture = ShardReader(shards)[0].picture()
    mine, models = checkpoint_processor(f"testbed:{name}"), load_vlm(str(weights.path(name))).prepare
    assert mine(picture).pixels.equal(models(picture).pixels)
    assert (mine(picture).patches, mine(picture).tokens) == (models(picture).patches, models(picture).tokens)


def test_published_processors_have_their_geometry(shards: Path) -> None:
    picture = ShardReader(shards)[0].picture()
    assert published_processor("llava-1.5")(picture).pixels.shape == (3, 336, 336)
    prepared = published_processor("qwen2-vl")(picture)
    rows, columns = prepared.patches
    assert prepared.pixels.shape == (rows * columns, 3 * 14 * 14) and rows % 2 == columns % 2 == 0
    assert 0.8 * 448 * 448 < rows * columns * 14 * 14 <= 448 * 448


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--dir", "{tmp}"], "manifest.json"),
        (["--processor", "llava-1.6"], "did you mean 'llava-1.5'"),
        (["--rouns", "3"], "did you mean 'rounds'"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--batch", "many"], "batch must be an integer"),
        (["--worker-batches", "2"], "worker_batches must be at least 3"),
        (["--out", "{tmp}"], "give a file"),
    ],
)
def test_a_slip_is_one_clear_line(
    args: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = [arg.format(tmp=tmp_path) for arg in args]
    assert cli.main(["bench", "data", *TINY, *given]) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("making")]
    assert len(lines) == 1 and lines[0].startswith("cropl: error: ") and expected in lines[0], lines


def test_an_unknown_measurement_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "dta"]) == 2
    assert "did you mean 'data'" in capsys.readouterr().err
    assert cli.main(["bench", "data", "--help"]) == 0 == cli.main(["bench", "--help"])
    assert "cropl bench data" in capsys.readouterr().out
