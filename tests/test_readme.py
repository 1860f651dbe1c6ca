"""README's commands and its Python, as a reader would run them: in order, in an empty folder, on small things.

`SHOWN` says of every command how. A command of README that it does not know fails.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cropl.cli import main
from cropl.commands.verbs import COMMANDS, TRAINING_VERBS
from cropl.testbed.official_open import gqa
from cropl.testbed.samples import samples
from cropl.testbed.scenes import scene
from cropl.testbed.weights import resolve
from tests.evaluation.suites import stored, table2

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SURFACE = json.loads((ROOT / "tests/commands/surface.json").read_text(encoding="utf-8"))
PHOTO = next((ROOT / "cropl/testbed/photos").glob("*226111.jpg"))
LEAST = '--limit 2 --bootstrap 20 --gallery 0 --seeds "[0]"'
ONE_ARM = '"[{method: ilp, region_source: predicted, layer: 1, budget: 64}]"'


@dataclass(frozen=True)
class Shown:
    """What is done about a command of README.

    Attributes:
        more: flags behind it, which make it short.
        instead: a command in its place, where it needs a hub, a GPU or hours; "" runs it as it is.
        slow: flags behind it, or the command that is run in the slow test; None is as in the fast one.
        code: the exit code.
        said: what has to be printed.
        leaves: files and folders that are there afterwards.
        alone: why nothing is run: only its verb and flags are checked.
    """

    more: str = ""
    instead: str = ""
    slow: str | None = None
    code: int = 0
    said: str = ""
    leaves: tuple[str, ...] = ()
    alone: str = ""


SHOWN = {
    "make quickstart": Shown(alone="tests/commands/test_quickstart.py runs what it runs"),
    "make test": Shown(alone="this"),
    "cropl doctor": Shown(said="torch"),
    "cropl ls": Shown(said="testbed/study"),
    "cropl demo": Shown(alone="serves until it is stopped: tests/integrations/demo"),
    'cropl ask testbed:4 "What word is on the red sign?" --compare -o overlay.png': Shown(
        said="park", leaves=("overlay.png",)
    ),
    'cropl ask photo.jpg "What does the sign say?" --region 2,1,5,2 --model llava-hf/llava-1.5-7b-hf': Shown(
        more="--model testbed:llava"
    ),
    "cropl fit -c testbed/localizer": Shown(
        instead="cropl check testbed/localizer", said="ready",
        slow="--data.scenes 8 --data.val_scenes 4 --data.batch_size 4 --trainer.max_steps 2 "
             "--trainer.val_check_interval 1",
    ),
    "cropl test -c testbed/ilp --trainer.devices 2": Shown(
        instead="cropl check testbed/ilp", said="ready", slow="--data.count 8 --data.batch_size 2"
    ),
    "cropl evaluate -c testbed/study --limit 300": Shown(
        more=f"{LEAST} --arms {ONE_ARM}", slow=LEAST, leaves=("runs/testbed/study/report.html",)
    ),
    "cropl evaluate -c testbed/study_full": Shown(
        instead="cropl check testbed/study_full", said="ready", slow=LEAST
    ),
    "cropl evaluate -c testbed/tables --processes 2": Shown(
        more=f"{LEAST} --processes 1 --benchmarks [testbed/benchmark/gqa] --arms {ONE_ARM}",
        slow=f"{LEAST} --arms {ONE_ARM}",
        leaves=("runs/testbed/tables/results.json",),
    ),
    "cropl report runs/testbed/tables -o tables": Shown(leaves=("tables/tables.html", "tables/tables.md")),
    "cropl answer questions.jsonl -o answers.jsonl --budget 64": Shown(leaves=("answers.jsonl",)),
    "cropl score gqa --predictions answers.jsonl --annotations testdev_balanced_questions.json": Shown(said="accuracy"),
    "cropl bench prune --out runs/prune.json": Shown(alone="an hour: tests/bench/test_prune.py"),
    "cropl check evaluate/llava_1_5_7b/table2": Shown(code=1, said="no such"),
    "cropl evaluate -c evaluate/llava_1_5_7b/table2 --vars.data /datasets --processes 8": Shown(
        instead="cropl check evaluate/llava_1_5_7b/table2 --vars.data /datasets", code=1, said="/datasets/"
    ),
    "cropl report runs/evaluate/llava_1_5_7b/table2 -o results": Shown(leaves=("results/table2.html",)),
    "cropl check data/viscot_benchmark": Shown(code=1, said="benchmark_textvqa.json"),
    "cropl shards build -c data/viscot_benchmark --vars.name gqa --vars.root ~/visual-cot": Shown(
        leaves=("shards/viscot-benchmark-gqa",)
    ),
    "cropl shards verify shards/viscot-benchmark-gqa": Shown(),
    "cropl shards inspect shards/viscot-benchmark-gqa": Shown(said="region"),
    "cropl bench data": Shown(more="--samples 4 --batch 2 --rounds 1 --workers 1 --worker-batches 3", said="bound by"),
    "cropl check localizer/qwen2_vl_2b_lora": Shown(code=1, said="no such folder of shards"),
    "cropl fit -c localizer/qwen2_vl_2b_lora": Shown(
        instead="cropl check localizer/qwen2_vl_2b_lora", code=1, said="no such folder of shards"
    ),
    "cropl fit -c compressor/llava_1_5_7b -c trainer/fsdp2": Shown(
        instead="cropl check compressor/llava_1_5_7b -c trainer/fsdp2", code=1, said="no such folder of shards"
    ),
    "cropl evaluate -c testbed/plc_study": Shown(
        more=f"{LEAST} --arms \"[{{method: plc, model: 'testbed:plc', region_source: predicted}}]\"", slow=LEAST,
        leaves=("runs/testbed/plc_study/report.html",),
    ),
    "cropl calibrate": Shown(
        more="--data.calibrate testbed:val:10 --data.check testbed:test:4", leaves=("runs/calibrate/calibration.json",)
    ),
}  # fmt: skip
PYTHON = {
    "llava-hf/llava-1.5-7b-hf": resolve("testbed:llava"),
    "./localizer": "testbed:localizer",
    "street.jpg": "photo.jpg",
}
"""What README's Python calls its model, localizer and picture, and what stands for them here."""


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """The lines of a block without comments."""
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


BLOCKS = [commands(block) for block in blocks("bash")]


def words(command: str) -> list[str]:
    """As a shell would split it."""
    return [os.path.expanduser(word) for word in shlex.split(command)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, but for the package and what README says a reader has; it is also the home folder."""
    home = tmp_path / "visual-cot"
    home.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    (tmp_path / "cropl").symlink_to(ROOT / "cropl")
    gqa(tmp_path, [scene("test", 0)])
    asked = tmp_path / "llava_gqa_testdev_balanced.jsonl"
    with open("questions.jsonl", "w", encoding="utf-8") as questions:
        for row in map(json.loads, asked.read_text().splitlines()):
            told = {"key": row["question_id"], "image": f"images/{row['image']}", "question": row["text"]}
            questions.write(json.dumps(told) + "\n")
    _write_viscot(home)
    stored(tmp_path / "runs/evaluate/llava_1_5_7b/table2", table2())
    return tmp_path


def _write_viscot(root: Path) -> None:
    """A benchmark file of Visual-CoT."""
    (root / "cot").mkdir()
    rows = []
    for number, sample in enumerate(one for one in samples("test", 6) if one.boxes):
        sample.picture().save(root / "cot" / f"{number}.jpg")
        image, box = f"cot/{number}.jpg", ", ".join(str(int(edge)) for edge in sample.boxes[0])
        talk = [f"<image>\n{sample.question}", "[0.100, 0.100, 0.200, 0.200]", "<image>", sample.answers[0]]
        turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(talk)]
        rows.append({"question_id": number, "image": [image, f"{image}###[{box}]"], "conversations": turns,
                     "dataset": "gqa", "split": "val"})  # fmt: skip
    (root / "benchmark_gqa.json").write_text(json.dumps(rows))


def test_every_command_is_known() -> None:
    shown = [command for block in BLOCKS for command in block]
    assert len(shown) > 10
    assert not set(shown) - set(SHOWN), "say in SHOWN how these are run"
    assert not set(SHOWN) - set(shown), "README has these no more"


@pytest.mark.parametrize("command", list(dict.fromkeys(command for block in BLOCKS for command in block)))
def test_verbs_and_flags_exist(command: str) -> None:
    """Keys of recipes (`--vars.data`, `--limit`) are checked where the command or its recipe is."""
    program, verb, *rest = words(command)
    if program == "make":
        assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return
    assert program == "cropl" and verb in {**COMMANDS, **TRAINING_VERBS}
    known = SURFACE.get(f"{verb} {rest[0]}" if rest and f"{verb} {rest[0]}" in SURFACE else verb, [])
    if "--key" not in known and verb not in TRAINING_VERBS:
        assert {word for word in rest if word.startswith("--")} <= set(known)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[0].replace("cropl ", "").replace("/", "_")[:40])
def test_a_block_runs(block: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in block:
        told = SHOWN[command]
        if told.alone:
            continue
        asked = told.instead or f"{command} {told.more}"
        code = main(words(asked)[1:])
        printed = capsys.readouterr()
        assert code == told.code, f"{asked}: {printed.err[-1000:]}"
        assert told.said in printed.out, asked
        assert not [name for name in told.leaves if not (folder / name).exists()], asked


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command, told in SHOWN.items() if told.slow is not None])
def test_what_takes_long_runs(command: str, folder: Path) -> None:
    """In a process of its own, with README's own number of processes."""
    asked = words(f"{command} {SHOWN[command].slow}")[1:]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "cropl", *asked], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_python_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "\n".join(blocks("python"))
    for name, here in PYTHON.items():
        assert source.count(f'"{name}"') == 1, f"README's Python does not name {name}: say in PYTHON what it names"
        source = source.replace(f'"{name}"', f'"{here}"')
    exec(compile(source, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
