"""`cropl answer`: a line for each question whatever is wrong with it, files that are continued, streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cropl.cli import main
from cropl.commands.answer_files import read_questions
from cropl.data.predicted import read_regions
from cropl.models.localizer import Localizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two photographs, one file that is none."""
    made = tmp_path_factory.mktemp("questions")
    for name, size in (("a.jpg", (200, 120)), ("b.png", (90, 140))):
        Image.effect_noise(size, 80).convert("RGB").save(made / name)
    (made / "c.jpg").write_text("no picture")
    return made


LINES = [
    json.dumps({"image": "a.jpg", "question": "What color is the star?", "key": "first"}),
    "b.png\tIs there a star?",
    "",
    json.dumps({"image": "c.jpg", "question": "What is it?"}),
    "{broken",
    json.dumps({"image": "b.png", "question": "Qué es — this?"}),
]


@pytest.fixture
def answer(tiny_llava, tiny_localizer, folder, tmp_path, capsys):
    def run(*args, lines=LINES, code=0):
        questions = folder / "questions.jsonl"
        questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
        models = ["--model", tiny_llava, "--localizer", tiny_localizer, "--in-thread", "--max-new-tokens", "2"]
        assert main(["answer", str(questions), *models, *args]) == code
        told = capsys.readouterr()
        return [json.loads(line) for line in told.out.splitlines()], told.err

    return run


def test_a_line_for_each_question(answer, tiny_localizer, folder):
    rows, told = answer("--batch-size", "2", "--window", "2")
    assert [row["key"] for row in rows] == ["first", "2", "4", "line 5", "6"]
    assert [row["answer"] is not None for row in rows] == [True, True, False, False, True]
    (region,) = Localizer.from_pretrained(tiny_localizer).locate([Image.open(folder / "b.png")], ["Is there a star?"])
    assert rows[1]["region"] == list(region.as_tuple()) and rows[1]["total"] == 144 and rows[1]["fallback"] is None
    assert "not a JPEG, PNG or WebP" in rows[2]["error"] and rows[2]["image"] == "c.jpg"
    assert rows[3]["error"].startswith("line 5 is no question") and rows[4]["question"] == "Qué es — this?"
    assert "3 answered" in told and "2 not answered (first: 4: image" in told
    assert [row["region"] is None for row in rows] == [False, False, True, True, False]
    assert all(row["seconds"]["localize"] >= 0 for row in rows)


def test_answers_are_written_and_continued(answer, tmp_path):
    out = tmp_path / "answers.jsonl"
    rows, _ = answer("-o", str(out), "--budget", "20", lines=LINES[:2])
    assert rows == []
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["kept"] for row in written] == [20, 20]
    assert set(read_regions(out)) == {("key", "first"), ("key", "2")}

    _, told = answer("-o", str(out), code=2)
    assert "exists; give another name, or --resume" in told
    with open(out, "a") as file:
        file.write('{"key": "cut o')
    _, told = answer("-o", str(out), "--resume", "--budget", "20")
    assert "1 answered" in told and "2 not answered" in told
    continued = [json.loads(line) for line in out.read_text().splitlines()]
    assert continued[:2] == written and [row["key"] for row in continued] == ["first", "2", "4", "line 5", "6"]
    _, told = answer("-o", str(out), "--resume", code=2)
    assert "was answered with budget 20; resume like that" in told
    _, told = answer("-o", str(out), "--resume", "--budget", "20", lines=LINES[:3])
    assert "everything is answered" in told
    changed = [LINES[0].replace("star", "moon"), *LINES[1:], "a.jpg\tOne more?"]
    _, told = answer("-o", str(out), "--resume", "--budget", "20", lines=changed, code=2)
    assert "another question's" in told


def test_errors_are_tried_again_and_replaced(answer, folder, tmp_path):
    out = tmp_path / "answers.jsonl"
    broken = ["b.png\tIs there a star?", "late.jpg\tWhat is it?\tlate", "no tab", "c.jpg\tWhat?"]
    answer("-o", str(out), lines=broken)
    first = out.read_text().splitlines()
    assert [bool(json.loads(line)["error"]) for line in first] == [False, True, True, True]
    Image.new("RGB", (60, 40)).save(folder / "late.jpg")
    try:
        mended = [broken[0], broken[1], "a.jpg\tNow one?\tthird", broken[3], "a.jpg\tAnd one more?"]
        _, told = answer("-o", str(out), "--resume", lines=mended)
    finally:
        (folder / "late.jpg").unlink()
    assert "3 answered" in told and "1 not answered (first: 4: image" in told and "1 answer kept" in told
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["key"]: row["error"] is None for row in rows} == {
        "1": True, "late": True, "4": False, "third": True, "5": True
    }  # fmt: skip
    assert len(rows) == 5 and out.read_text().splitlines()[0] == first[0]
    assert len(read_regions(out)) == 4  # the one that has no answer has no region


def test_a_key_twice_is_refused_before_anything_is_loaded(folder, capsys):
    questions = folder / "twice.jsonl"
    questions.write_text("a.jpg\tWhat?\tk\n\na.jpg\tWho?\t4\na.jpg\tWhere?\n")
    assert main(["answer", str(questions), "--model", "/no/such/model"]) == 2
    told = capsys.readouterr().err
    assert f"{questions}:4: key '4' is also that of {questions}:3" in told


def test_nothing_answered_is_a_failure(answer):
    rows, told = answer(lines=["missing.jpg\tWhat?"], code=1)
    assert len(rows) == 1 and "0 answered" in told and "no such file" in told


def test_methods(answer):
    assert [row["kept"] for row in answer("--layer", "3", lines=LINES[:2])[0]] == [144, 144]  # K = L: nothing is pruned
    (row,) = answer("--method", "prune", "--budget", "0.25", lines=LINES[:1])[0]
    assert row["kept"] == 36
    (row,) = answer("--factor", "0.01", lines=LINES[:1])[0]
    assert row["kept"] < 10


def test_methods_that_cannot_be(answer):
    assert "--layer goes with --method ilp" in answer("--method", "prune", "--layer", "1", code=2)[1]
    assert "has no" in answer("--method", "plc", code=2)[1]
    assert "layer=9" in answer("--layer", "9", code=2)[1]


def test_zero_shot(answer, tiny_llava, tiny_localizer, folder, capsys):
    args = ["--model", tiny_llava, "--zero-shot", tiny_localizer, "--in-thread", "--max-new-tokens", "1"]
    (folder / "one.tsv").write_text("a.jpg\tWhere?\n")
    assert main(["answer", str(folder / "one.tsv"), *args]) == 0
    told = capsys.readouterr()
    row = json.loads(told.out)
    assert row["fallback"] == "the localizer's answer was no region" and row["kept"] == row["total"] == 144
    assert "1 of them with every token" in told.err


def test_a_model_with_a_compressor_compresses(answer, tiny_llava, tiny_localizer, folder, tmp_path, capsys):
    import shutil

    from cropl.models.compressor import Compressor, CompressorConfig
    from cropl.models.loading import load_config

    plc = shutil.copytree(tiny_llava, tmp_path / "plc")
    width = load_config(str(plc)).text_config.hidden_size
    Compressor(CompressorConfig(width, 9, 2, anchors=False, side=12)).save_pretrained(plc)
    args = ["--model", str(plc), "--localizer", tiny_localizer, "--in-thread", "--max-new-tokens", "1"]
    (folder / "one.tsv").write_text("a.jpg\tWhere?\n")
    assert main(["answer", str(folder / "one.tsv"), *args]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 11
    assert main(["answer", str(folder / "one.tsv"), *args, "--budget", "9"]) == 2
    assert "as it was trained to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["/no/such.jsonl"], "no such file"),
        (["-", "--batch-size", "0"], "--batch-size 0: must be an integer, at least 1"),
        (["-", "--timeout", "soon"], "--timeout soon: must be a number"),
        (["-", "--budget", "0"], "at least 1 token"),
        (["-", "--budget", "many"], "--budget many: must be a number"),
        (["-", "--budget", "9", "--factor", "1"], "instead of --budget"),
        (["-", "--factor", "nan"], "must be a number"),
        (["-", "--timeout", "inf"], "must be a number"),
        (["-", "--budget", "9" * 400 + "."], "must be a number"),
        (["-", "--images", "/no/folder"], "no such folder"),
        (["-", "--resume"], "--resume continues a file"),
        (["-", "-o", "/no/folder/x.jsonl"], "its folder does not exist"),
        (["-", "--localizer", "a", "--zero-shot", "b"], "not allowed with"),
    ],
)
def test_slips_are_told_before_anything_is_loaded(args, told, capsys):
    assert main(["answer", *args]) == 2
    assert told in capsys.readouterr().err


def test_help(capsys):
    assert main(["answer", "--help"]) == 0
    assert "--in-thread" in capsys.readouterr().out


def test_lines_that_are_no_questions():
    lines = [
        b'{"image": 3, "question": "x"}',
        b"only an image",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"image": "a", "question": " "}',
        b'{"image": "a", "question": "half \\ud83d"}',
    ]
    found = list(read_questions(lines, Path("pictures")))
    assert [key for _, _, key, _ in found] == [f"line {number}" for number in range(1, 7)]
    assert all(isinstance(image, ValueError) for image, *_ in found)
    ((image, question, key, name),) = read_questions([b"a b.jpg\tWhat, then?\tk 1\r\n"], Path("pictures"))
    assert (image, question, key, name) == (Path("pictures/a b.jpg"), "What, then?", "k 1", "a b.jpg")
    unnamed = b'{"image": "a", "question": "b", "key": null}'
    assert [key for _, _, key, _ in read_questions([b"", unnamed], Path())] == ["2"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_stream_is_answered_as_it_comes_and_left_at_ctrl_c(tiny_llava, tiny_localizer, folder):
    command = [sys.executable, "-m", "cropl.cli", "answer", "-", "--images", str(folder), "--batch-size", "1"]
    command += ["--model", tiny_llava, "--localizer", tiny_localizer, "--max-new-tokens", "1"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    for number in range(3):
        process.stdin.write(f"a.jpg\tIs it {number}?\n".encode())
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["question"] == f"Is it {number}?"
    children = subprocess.run(
        ["ps", "-o", "pid=", "-g", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(children) >= 2
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and b"interrupted" in told and b"Traceback" not in told and b"Fatal" not in told
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in children):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
