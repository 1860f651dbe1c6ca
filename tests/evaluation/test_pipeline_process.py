"""The localizer in a process of its own: the serial results, no hang and no orphan whatever ends, bounded memory."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cropl.budget import per_image
from cropl.errors import RunError
from cropl.evaluation.pipeline import Pipeline, pipeline
from cropl.evaluation.pipeline.items import Asked
from cropl.evaluation.pipeline.locate import Load, locate_batch
from cropl.evaluation.pipeline.process import ProcessStage
from cropl.models.localizer import Localizer
from cropl.models.vlm import load_vlm
from cropl.pruning import ILP, pruned
from cropl.testbed import weights
from cropl.testbed.samples import samples
from tests.evaluation.stages import PICTURE, Answers, broken, region_of, told

proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, within: float = 30) -> bool:
    deadline = time.monotonic() + within
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def run(pairs, batch_size=1, ahead=2, load=told, **options):
    return Pipeline(pairs, ProcessStage(load, 1, **options), Answers(batch_size), batch_size, 1, ahead)


def pairs_of(*questions):
    return [(PICTURE, question) for question in questions]


def test_a_load_names_what_it_loads(tiny_localizer):
    located = Load(tiny_localizer, "cpu")()
    assert isinstance(located, Localizer)
    grounded = Load(tiny_localizer, "cpu", zero_shot=True)()
    (found,) = locate_batch(grounded, [Asked(PICTURE, "Where is it ?")])
    assert found.region is None and found.problem == "the localizer's answer was no region"
    (found,) = locate_batch(located, [Asked(PICTURE, "Where is it ?")])
    assert found == type(found)(*located.locate([PICTURE], ["Where is it ?"]), None, found.seconds)


@pytest.mark.slow
def test_results_are_the_serial_ones(tmp_path):
    asked = samples(count=40)
    pairs = []
    for number, sample in enumerate(asked):
        path = tmp_path / f"{number}.png"
        sample.picture().save(path)
        pairs.append([(path, sample.question), (path.read_bytes(), sample.question), (sample.image, sample.question)])
    vlm, localizer = (
        load_vlm(weights.resolve("testbed:llava")),
        Localizer.from_pretrained(weights.resolve("testbed:localizer")),
    )
    results = list(pipeline([three[i % 3] for i, three in enumerate(pairs)], "testbed:localizer", vlm, budget=64))
    for sample, result in zip(asked, results, strict=True):
        (region,) = localizer.locate([sample.picture()], [sample.question])
        inputs = vlm.inputs([sample.picture()], [sample.question])
        with pruned(vlm, ILP(layer=1), keep=[per_image(region, inputs.grids[0], 64)]):
            (answer,) = vlm.generate(inputs)
        assert (result.region, result.answer, result.kept, result.error) == (region, answer, 64, None)


@pytest.mark.slow
@proc
def test_a_process_that_is_killed_is_noticed():
    stage = ProcessStage(told, 1)
    results = Pipeline(pairs_of(*(f"fine {i}" for i in range(30))), stage, Answers(1), 1, 1, 2)
    got = []
    for result in results:
        got.append(result)
        if len(got) == 5:
            os.kill(stage.pid, signal.SIGKILL)
    assert [result.answer for result in got] == [f"FINE {i}" for i in range(30)]
    assert all(result.region == region_of(f"fine {i}") for i, result in enumerate(got[:5]))
    assert {result.fallback for result in got[10:]} == {"the localizer's process ended (signal 9)"}
    assert results.fallbacks == sum(result.region is None for result in got) >= 20

    told_off = list(run(pairs_of("fine 0", "die 1", "fine 2")))  # the question that kills it
    assert [result.region is None for result in told_off] == [False, True, True]
    with pytest.raises(RunError, match="signal 9"):
        list(run(pairs_of("fine 0", "die 1", "fine 2"), raises=True))


@pytest.mark.slow
@proc
def test_a_process_that_hangs_is_ended():
    results = run(pairs_of("fine 0", *["slow 1"] * 9), timeout=0.1)
    pid = results.stage.pid
    fallbacks = [result.fallback for result in results]
    assert fallbacks[0] is None and "no region within 0.1 s" in fallbacks[1:4]
    assert gone(pid)


@pytest.mark.slow
@proc
def test_what_cannot_be_loaded_is_an_error():
    stage = run(pairs_of("fine 0"), load=broken)
    with pytest.raises(RunError, match="could not be loaded: no weights in here"):
        next(stage)
    with pytest.raises(RunError, match="no such checkpoint folder"):
        list(pipeline(pairs_of("fine 0"), "./nowhere", load_vlm(weights.resolve("testbed:llava"))))
    killed = run(pairs_of("fine 0"))
    os.kill(killed.stage.pid, signal.SIGKILL)
    with pytest.raises(RunError, match="signal 9.* before it was loaded"):
        next(killed)


def resident(pid: int) -> int:
    """Megabytes in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


@pytest.mark.slow
@proc
def test_an_endless_stream_takes_no_more_memory():
    read = []
    frame = Image.effect_noise((1000, 700), 60).convert("RGB")  # 2 MB each

    def frames():
        for number in itertools.count():
            read.append(number)
            yield frame, f"fine {number}"

    results = run(frames(), batch_size=4)
    pid = results.stage.pid
    sizes = []
    for taken, result in enumerate(results):
        assert result.answer == f"FINE {taken}" and len(read) <= taken + 4 * 4
        if taken in (100, 700):
            sizes.append((resident(os.getpid()), resident(pid)))
        if taken == 700:
            break
    results.close()
    (before, before_there), (after, after_there) = sizes
    assert after - before < 60 and after_there - before_there < 60, sizes  # it read 1.2 GB meanwhile
    assert gone(pid)


SCRIPT = """
import itertools, sys, time
from cropl.evaluation.pipeline import Pipeline
from cropl.evaluation.pipeline.process import ProcessStage
from tests.evaluation.stages import PICTURE, Answers, told

if __name__ == "__main__":
    stage = ProcessStage(told, 1)
    print(stage.pid, flush=True)
    if sys.argv[1] == "early":
        time.sleep(60)
    for result in Pipeline(((PICTURE, f"slow {i}") for i in itertools.count()), stage, Answers(1), 1, 1, 2):
        print(result.answer, flush=True)
"""


@pytest.mark.slow
@proc
@pytest.mark.parametrize(
    ("when", "by"),
    [("later", signal.SIGINT), ("early", signal.SIGINT), ("later", signal.SIGKILL), ("early", signal.SIGTERM)],
)
def test_no_process_is_left_behind(tmp_path, when, by):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), when]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    pid = int(process.stdout.readline())
    if when == "later":
        assert process.stdout.readline() == "SLOW 0\n"
    if by == signal.SIGINT:
        os.killpg(process.pid, by)  # as a terminal does
    else:
        process.send_signal(by)
    _, told = process.communicate(timeout=60)
    assert process.returncode in (-by, 1, 130) and gone(pid)
    assert told.count("Traceback") == (by == signal.SIGINT), told  # Python's own, of the first process alone


@pytest.mark.slow
@proc
@pytest.mark.parametrize("end", ["close", "end"])
def test_the_process_ends_with_its_stream(end):
    results = run(pairs_of(*(f"fine {i}" for i in range(5))))
    pid = results.stage.pid
    if end == "end":
        assert len(list(results)) == 5
    else:
        next(results)
        results.close()
    assert gone(pid, within=5)
