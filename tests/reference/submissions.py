"""What official scripts and servers make of a submission, restated from their rules: files in, one score out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.reference import official


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def gqa(submission: Path, questions: Path) -> float:
    """Percent of balanced questions answered with the very word."""
    said = {row["questionId"]: row["prediction"] for row in read(submission)}
    asked = {id: row for id, row in read(questions).items() if row["isBalanced"]}
    return 100 * sum(said[id] == row["answer"] for id, row in asked.items()) / len(asked)


def vqav2(submission: Path, annotations: Path) -> float:
    """Percent; ids are numbers, and exactly those of the annotations."""
    said = {row["question_id"]: row["answer"] for row in read(submission)}
    rows = read(annotations)["annotations"]
    assert sorted(said) == sorted(row["question_id"] for row in rows)
    total = 0.0
    for row in rows:
        answer, given = official.one_line(said[row["question_id"]]), [one["answer"] for one in row["answers"]]
        if len(set(given)) > 1:
            answer, given = official.official(answer), [official.official(one) for one in given]
        total += float(official.leave_one_out(answer, given))
    return 100 * total / len(rows)


def textvqa(submission: Path, annotations: Path) -> float:
    """Percent; ids are numbers."""
    said = {row["question_id"]: row["answer"] for row in read(submission)}
    rows = read(annotations)["data"]
    assert sorted(said) == sorted(row["question_id"] for row in rows)
    return 100 * sum(float(official.textvqa(said[row["question_id"]], row["answers"])) for row in rows) / len(rows)


def mme(folder: Path) -> float:
    """Points: the lines of a task belong together by twos."""
    points = 0.0
    for file in sorted(folder.glob("*.txt")):
        with open(file, encoding="utf-8") as opened:
            lines = opened.readlines()
        right = []
        for line in lines:
            name, question, label, answer = line.split("\t")
            assert name.endswith(".txt") and question.endswith("Please answer yes or no.")
            right.append(official.mme(answer.rstrip("\n")) == label.lower())
        pairs = [first and second for first, second in zip(right[::2], right[1::2], strict=True)]
        names = [line.split("\t")[0] for line in lines]
        assert names[::2] == names[1::2]
        points += 100 * sum(right) / len(right) + 100 * sum(pairs) / len(pairs)
    return points


def pope(folder: Path, *labels: Path) -> float:
    """Percent: the mean F1 over the files of labels; line i answers line i."""
    scores = []
    for file in labels:
        truth = [json.loads(line)["label"] for line in file.read_text().splitlines()]
        with open(folder / f"{file.stem}.jsonl", encoding="utf-8") as opened:
            said = [official.pope(json.loads(line)["answer"]) for line in opened]
        assert len(said) == len(truth)
        right = sum(one == other == "yes" for one, other in zip(said, truth, strict=True))
        precision, recall = right / said.count("yes"), right / truth.count("yes")
        scores.append(2 * precision * recall / (precision + recall))
    return 100 * sum(scores) / len(scores)


def scienceqa(submission: Path, problems: Path) -> float:
    """Percent; the file says the same of itself, and reads outputs as the script does."""
    result, asked = read(submission), read(problems)
    right = sum(result["results"][id] == row["answer"] for id, row in asked.items())
    assert (result["correct"], result["count"]) == (right, len(asked)) and result["acc"] == 100 * right / len(asked)
    for id, row in asked.items():
        assert result["results"][id] == official.scienceqa(result["outputs"][id], len(row["choices"]))
    return 100 * right / len(asked)
