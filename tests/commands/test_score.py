"""`cropl score`: answers in published forms against official annotation files, each as its authors lay it out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cropl.benchmarks.names import BENCHMARKS, FILES, benchmark
from cropl.cli import main
from cropl.data.readers.llava_questions import SHORT_ANSWER
from cropl.data.readers.mme import COGNITION, PERCEPTION


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def gqa(folder: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    told = [("yes", "verify"), ("no", "logical"), ("cat", "query"), ("dog", "query"), ("x", "query")]
    questions = {
        str(i): {"question": "q", "answer": answer, "isBalanced": i < 4, "types": {"structural": structure}}
        for i, (answer, structure) in enumerate(told)
    }
    (folder / "gqa.json").write_text(json.dumps(questions))
    said = ["Yes.", "yes", "Cat", "a dog"]
    return [folder / "gqa.json"], [{"question_id": str(i), "text": text} for i, text in enumerate(said)]


def mme(folder: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    answers = []
    for task in (*PERCEPTION, *COGNITION):
        (folder / "mme" / task).mkdir(parents=True)
        text = "Is it? Please answer yes or no.\tYes\nIs it not? Please answer yes or no.\tNo\n"
        (folder / "mme" / task / "0001.txt").write_text(text)
        right = task != "OCR"
        for question, answer in (("Is it not?", "No"), ("Is it?", "Yes" if right else "No")):  # in another order
            row = {"question_id": f"{task}/0001.png", "prompt": question + SHORT_ANSWER, "text": answer}
            answers.append(row)
    return [folder / "mme"], answers


def pope(folder: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    files, answers = [], []
    for number, category in enumerate(("adversarial", "random", "popular")):
        asked = {"image": "x.jpg", "text": "Is there a cat?"}
        rows = [{"question_id": i, **asked, "label": "yes" if i % 2 else "no"} for i in (1, 2, 3, 4)]
        files.append(folder / f"coco_pope_{category}.json")
        files[-1].write_text(lines(rows))
        answers += [{"question_id": 10_000_000 * number + i, "text": "Yes, it is."} for i in (1, 2, 3, 4)]
    return files, answers


def scienceqa(folder: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    problems = {
        str(i): {"choices": ["a", "b"], "answer": i % 2, "image": "image.png" if i < 2 else None} for i in range(4)
    }
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["0", "1", "2", "3"], "val": ["9"]}))
    said = ["A", "The answer is B.", "B. b", "C"]
    answers = [{"question_id": str(i), "text": text} for i, text in enumerate(said)]
    return [folder / "problems.json", folder / "pid_splits.json"], answers


def textvqa(folder: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    data = [
        {"question_id": 1, "image_id": "im", "question": "What Brand?", "answers": ["acme"] * 3 + ["unclear"] * 7},
        {"question_id": 2, "image_id": "im", "question": "What number?", "answers": ["Two"] * 10},
    ]
    (folder / "textvqa.json").write_text(json.dumps({"data": data}))
    asked = ["What number?\nReference OCR token: A, B\nAnswer", "What brand?\nReference OCR token: A, B\nAnswer"]
    said = zip(asked, ["2", "Acme."], strict=True)
    answers = [{"question_id": "im", "prompt": prompt, "text": text} for prompt, text in said]
    return [folder / "textvqa.json"], answers


def vqav2(folder: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    rows = [
        {"question_id": 10, "answer_type": "yes/no", "answers": [{"answer": "yes"}] * 10},
        {"question_id": 20, "answer_type": "other", "answers": [{"answer": "a dog"}] * 2 + [{"answer": "cat"}] * 8},
    ]
    (folder / "vqav2.json").write_text(json.dumps({"annotations": rows}))
    return [folder / "vqav2.json"], [{"question_id": 10, "text": "Yes"}, {"question_id": 20, "text": "the dog"}]


MADE = {"gqa": gqa, "mme": mme, "pope": pope, "scienceqa": scienceqa, "textvqa": textvqa, "vqav2": vqav2}
EXPECTED = {
    "gqa": {"accuracy": 50, "binary": 50, "open": 50},
    # 13 tasks at 200 points; in OCR one of the two questions of the only image is right
    "mme": {"total": 13 * 200 + 50, "perception": 9 * 200 + 50, "cognition": 800, "OCR": 50, "count": 200},
    "pope": {"accuracy": 50, "precision": 50, "recall": 100, "f1": 200 / 3, "yes": 100},
    "scienceqa": {"accuracy": 50, "image_accuracy": 100, "text_accuracy": 0},
    "textvqa": {"accuracy": 95},
    "vqav2": {"accuracy": 80, "yes/no": 100, "other": 60},
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_each_benchmark_from_its_official_files(name, form, tmp_path, capsys) -> None:
    files, answers = MADE[name](tmp_path)
    predictions = tmp_path / f"answers.{form}"
    predictions.write_text(lines(answers) if form == "jsonl" else json.dumps(answers))
    out = tmp_path / "scores.json"
    given = ["score", name, "--predictions", str(predictions), "--annotations", *map(str, files), "--out", str(out)]
    assert main([*given, "--against", str(predictions)]) == 0
    told = json.loads(out.read_text())
    assert {score: told["scores"][score] for score in EXPECTED[name]} == pytest.approx(EXPECTED[name])
    assert told["primary"] in EXPECTED[name] and told["n"] == len(answers)
    assert all(one == {"mean": 0, "ci95": [0, 0]} for one in told["differences"].values())
    assert told["primary"] in capsys.readouterr().out


def test_slips_are_named(tmp_path, capsys) -> None:
    files, answers = gqa(tmp_path)
    path = tmp_path / "answers.jsonl"
    given = ["score", "gqa", "--predictions", str(path), "--annotations", *map(str, files)]
    for text, says in [
        (lines(answers[:3]), r"1 without an answer \(3\)"),
        (lines([*answers, answers[0]]), "row 5 is a second answer to 0"),
        (lines([*answers, {"question_id": "5", "text": "x"}]), r"1 not among the questions \(5\)"),
        (lines([{"question_id": "0"}]), "row 1 is no answer"),
        (lines([{"text": "yes"}]), "row 1 is no answer"),
        ("[1]\n", "row 1 is no answer"),
        ("nonsense\n", "row 1 is no answer"),
        ("", "the file is empty"),
        (lines([{"question_id": "0", "image": "x.jpg", "text": "Is it?"}]), "row 1 is no answer .a question"),
    ]:
        path.write_text(text)
        assert main(given) != 0

        assert re.search(says, capsys.readouterr().err), says
    assert main([*given[:4], "--annotations", "a", "b"]) == 2
    assert "gqa has 1: testdev_balanced_questions.json" in capsys.readouterr().err
    assert main(["score", "gpa", *given[2:]]) == 2
    assert "did you mean 'gqa'" in capsys.readouterr().err


def test_what_was_submitted_already_is_not_normalised_again(tmp_path) -> None:
    (tmp_path / "vqav2.json").write_text(
        json.dumps({"annotations": [{"question_id": 1, "answers": [{"answer": "that's"}] * 10}]})
    )
    found = {}
    for name in ("text", "answer"):
        (tmp_path / name).write_text(json.dumps([{"question_id": 1, name: "that's"}]))
        out = tmp_path / f"{name}.scores"
        files = ["--annotations", str(tmp_path / "vqav2.json"), "--out", str(out)]
        assert main(["score", "vqav2", "--predictions", str(tmp_path / name), *files]) == 0
        found[name] = json.loads(out.read_text())["scores"]["accuracy"]
    assert found == {"text": 0, "answer": 100}  # the challenge's normalisation makes "that 's" of what a model says


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gqa", '{"1": {"question": "q", "isBalanced": true}}'),
        ("gqa", '[{"question_id": 1}]'),
        ("textvqa", '{"data": [{"image_id": "a", "question": "q"}]}'),
        ("vqav2", '{"annotations": [{"question_id": 1, "answers": 3}]}'),
        ("scienceqa", '{"test": {"choices": []}}'),
    ],
)
def test_files_that_are_not_the_annotations_are_named(name, text, tmp_path, capsys) -> None:
    path, answers = tmp_path / "annotations.json", tmp_path / "answers.json"
    path.write_text(text)
    answers.write_text('[{"question_id": 1, "text": "x"}]')
    files = [str(path)] * len(FILES[name])
    assert main(["score", name, "--predictions", str(answers), "--annotations", *files]) != 0
    told = capsys.readouterr().err
    assert str(path) in told and "Traceback" not in told
    assert main(["score", "os.path.join", "--predictions", str(answers), "--annotations", *files]) == 2
    assert "is no Benchmark" in capsys.readouterr().err


def test_names_and_files_belong_together() -> None:
    assert set(BENCHMARKS) == set(FILES) == set(MADE)
    for name in BENCHMARKS:
        made = benchmark(name)
        assert made.name == name and benchmark(BENCHMARKS[name]).name == name
