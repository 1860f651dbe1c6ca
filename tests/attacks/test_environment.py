"""No network, a token that nobody may read, packages that are absent, other ways to start processes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cropl.data.writer import ShardWriter
from cropl.testbed.samples import samples
from tests.attacks.guard import ROOT, SECRET, Guarded

PHOTO = str(ROOT / "cropl" / "testbed" / "photos" / "000000226111.jpg")
ASK = ["ask", PHOTO, "What word is on the white sign?", "--region", "0,0,7,3"]
LIGHT = [
    ["ls"],
    ["show", "testbed/ilp"],
    ["cp", "testbed/ilp", "own.yaml"],
    ["completion", "bash"],
    ["shards", "--help"],
]

EXTRAS = {
    "accelerate", "bitsandbytes", "deepspeed", "flash_attn", "gradio", "hypothesis", "lmms_eval", "mkdocs", "nbformat",
    "pandas", "peft", "playwright", "pytest", "scipy", "starlette", "torchvision", "trustme", "uvicorn", "wandb",
}  # fmt: skip
"""Top-level packages that are no dependencies of cropl: of its extras, of Lightning's, or used by many beside it."""

BLOCK = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in {EXTRAS!r}
        return None if absent else self.finder.find_spec(name, path, target)

    def find_distributions(self, context):
        absent = (context.name or "").replace("-", "_") in {EXTRAS!r}
        return [] if absent else getattr(self.finder, "find_distributions", lambda context: [])(context)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
"""Python code: neither these packages nor what is known of them is there."""


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    return Guarded(tmp_path)


def test_the_guard_refuses_other_machines_and_no_other(guarded: Guarded) -> None:
    (guarded.folder / "call.py").write_text(
        "import socket, sys\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    socket.create_connection(server.getsockname()).close()\n"
        "for call in (lambda: socket.socket().connect(('192.0.2.1', 80)), lambda: socket.getaddrinfo('a.test', 80)):\n"
        "    try:\n"
        "        call()\n"
        "    except OSError as error:\n"
        "        print(error.strerror)\n"
    )
    told = guarded.python("call.py")
    assert told.printed.splitlines() == ["Network is unreachable"] * 2
    assert told.calls == ["socket.connect 192.0.2.1", "socket.getaddrinfo a.test"]


def test_light_verbs_call_nobody(guarded: Guarded) -> None:
    told = guarded.cropl(*LIGHT)
    assert told.codes == [0] * len(LIGHT) and not told.calls, told.printed
    assert SECRET not in told.printed and not guarded.files_with()


@pytest.mark.slow
def test_everything_on_the_testbed_runs_without_a_network(tmp_path: Path) -> None:
    """And tells no token; where Python starts processes as 3.14 does."""
    guarded = Guarded(tmp_path, START_METHOD="forkserver")
    with ShardWriter(tmp_path / "shards", samples_per_shard=4) as writer:
        for sample in samples("train", 8):
            writer.write(sample)
    asked = [json.dumps({"image": PHOTO, "question": question}) + "\n" for question in ("What is it?", "Is it red?")]
    (tmp_path / "questions.jsonl").write_text("".join(asked))
    (tmp_path / "gqa.json").write_text(json.dumps({"1": {"question": "q", "answer": "yes", "isBalanced": True}}))
    (tmp_path / "said.jsonl").write_text(json.dumps({"question_id": "1", "text": "yes"}) + "\n")
    scenes = ["--data.init_args.scenes", "8", "--data.init_args.val_scenes", "2", "--data.init_args.batch_size", "4"]
    shards = [
        "--data", "cropl.datamodules.localization.LocalizationShards", "--data.init_args.train_dir", "shards",
        "--data.init_args.global_batch", "4", "--data.init_args.num_workers", "2",
        "--trainer.val_check_interval", "null", "--trainer.limit_val_batches", "0",
    ]  # fmt: skip
    few = ["--limit", "4", "--vars.budgets", "[64]", "--seeds", "[0]"]
    commands = [
        ["doctor", "--json"], ["check", "testbed/ilp"], ["shards", "verify", "shards"],
        ["shards", "inspect", "shards", "--count", "1"],
        ["fit", "-c", "testbed/localizer", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", *scenes],
        ["fit", "-c", "testbed/localizer", "--trainer.max_steps", "2", "--trainer.default_root_dir", "other", *shards],
        ["export", "runs/testbed/localizer/checkpoints", "exported"],
        ["test", "-c", "testbed/ilp", "--data.init_args.count", "4"],
        ["ask", *ASK[1:3], "--compare", "-o", "overlay.png"],
        ["answer", "questions.jsonl", "-o", "answers.jsonl"],
        ["evaluate", "-c", "testbed/study", *few, "--processes", "2"],
        ["report", "runs/testbed/study", "-o", "tables"],
        ["calibrate", "--data.calibrate", "testbed:val:12", "--data.check", "testbed:test:4"],
        ["score", "gqa", "--predictions", "said.jsonl", "--annotations", "gqa.json"],
        ["bench", "train", "--tasks", "[localizer]", "--batch", "2", "--rounds", "1"],
    ]  # fmt: skip
    told = guarded.cropl(*commands)
    assert dict(zip(map(str, commands), told.codes)) == dict.fromkeys(map(str, commands), 0), told.printed
    assert not told.calls
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["error"] or answer["fallback"] for answer in answers] == [None, None]
    assert SECRET not in told.printed and not guarded.files_with()


@pytest.mark.slow
@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_network_a_hub_name_is_one_line(tmp_path: Path, offline: str) -> None:
    guarded = Guarded(tmp_path, HF_HUB_OFFLINE=offline)
    told = guarded.cropl(
        [*ASK, "--model", "nobody/private"],
        ["answer", "-o", "answers.jsonl", "--model", "nobody/private", "/dev/null"],
        ["evaluate", "-c", "testbed/study", "--model", "nobody/private", "--limit", "2"],
        ["fit", "-c", "testbed/localizer", "--model.init_args.checkpoint", "nobody/private"],
        ["shards", "inspect", "https://shards.test/folder"],
    )
    assert told.codes[0] == 1 and all(told.codes[2:]) and len(told.codes) == 5, told.printed
    errors = [line for line in told.printed.splitlines() if line.startswith("cropl: error:")]
    assert sum("nobody/private" in line for line in errors) == 3 and "Traceback" not in told.printed
    assert bool(told.calls) == (offline == "0")  # told to stay offline, it does not even try
    assert SECRET not in told.printed and not guarded.files_with()


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that tells everybody the token it was sent, and what it was sent."""
    sent: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.append(self.headers.get("Authorization") or "")
            body = json.dumps({"error": f"no entry with {sent[-1]}"}).encode()
            self.send_response((401, 403, 500)[len(sent) % 3])
            self.send_header("X-Error-Message", f"no entry with {sent[-1]}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", sent
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_token_is_sent_to_the_hub_and_never_told(tmp_path: Path, hub: tuple[str, list[str]]) -> None:
    """Not even by a hub that puts it into its errors."""
    address, sent = hub
    guarded = Guarded(tmp_path, HF_ENDPOINT=address)
    training = ["fit", "-c", "testbed/localizer", "--model.init_args.checkpoint", "nobody/private"]
    study = ["evaluate", "-c", "testbed/study", "--model", "nobody/private", "--limit", "2"]
    told = guarded.cropl([*ASK, "--model", "nobody/private"], training, study, ["doctor", "--json"], ["doctor"])
    assert [bool(code) for code in told.codes] == [True, True, True, False, False], told.printed
    assert f"Bearer {SECRET}" in sent and "nobody/private: cannot fetch" in told.printed
    assert SECRET not in told.printed and not guarded.files_with()


def test_processes_are_started_as_the_code_says() -> None:
    """What Python takes by itself differs between its versions and systems: fork up to 3.13, forkserver from 3.14."""
    faults = []
    for path in [*(ROOT / "cropl").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        nodes = ast.walk(ast.parse(text)) if "multiprocessing" in text or "Loader" in text else ()
        for node in nodes:
            if not isinstance(node, ast.Call):
                continue
            called, given = ast.unparse(node.func), {word.arg for word in node.keywords}
            of_default = called.startswith("multiprocessing.") and called.split(".")[1] in {
                "Process", "Pool", "Queue", "SimpleQueue", "Pipe", "Manager", "Lock", "Event", "Value", "Array",
                "set_start_method",
            }  # fmt: skip
            pool = called.endswith("ProcessPoolExecutor") and len(node.args) < 2 and "mp_context" not in given
            loader = called.endswith("Loader") and "num_workers" in given and "multiprocessing_context" not in given
            if (of_default and called != "multiprocessing.Pipe") or pool or (loader and called != "StreamLoader"):
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}: {called}")
    assert not faults


def test_the_command_line_needs_no_extra(tmp_path: Path) -> None:
    code = f"{BLOCK}\nfrom cropl.cli import main\nmain(['ls'])\nassert main(['demo', '--no-browser']) == 2\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and "pip install 'starlette" in run.stderr, run.stderr


@pytest.mark.slow
def test_modules_need_no_extra_and_say_which_they_need() -> None:
    """Without torchvision, gradio, peft, ...: all modules but the demo's, and a question is answered."""
    code = f"""{BLOCK}
import importlib, pkgutil, cropl
from cropl.cli import main

found = [m.name for m in pkgutil.walk_packages(cropl.__path__, "cropl.") if m.name != "cropl.__main__"]
failed = []
for name in found:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append((name, str(error)))
assert len(found) > 200, found
print(failed)
assert main({ASK!r}) == 0
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    failed = dict(ast.literal_eval(run.stdout.splitlines()[0]))
    assert set(failed) and all(name.startswith("cropl.integrations.") for name in failed)
    for name, told in failed.items():
        demo = name.startswith("cropl.integrations.demo") and ("'starlette'" in told or "'uvicorn'" in told)
        assert demo or "pip install 'lmms-eval<" in told, (name, told)


def test_nothing_that_numpy_2_has_dropped() -> None:
    command = [str(Path(sys.executable).with_name("ruff")), "check", "--select", "NPY", "--ignore", "NPY002"]
    run = subprocess.run([*command, "cropl", "datamodules"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
