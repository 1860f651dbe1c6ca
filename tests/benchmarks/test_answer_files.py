"""What answers may hold, and what files of them may be called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cropl.benchmarks.answers import read_answers
from cropl.benchmarks.base import Truth, read_truths
from cropl.benchmarks.names import benchmark
from cropl.benchmarks.pope import Pope
from tests.benchmarks.test_submissions import FILES, OFFICIAL, annotations, scored
from tests.testbed.test_official import exported as exported


@pytest.mark.parametrize("name", FILES)
def test_half_a_character_is_a_question_mark(name: str, exported: Path, tmp_path: Path) -> None:
    """A model's answer may end within a character, and JSON can say so; a file and a server cannot."""
    scorer, files = benchmark(name), annotations(name, exported)
    truths = read_truths(scorer, files)
    answers = {truth.id: scorer.submitted("no\ud800 \udc00 \U0001f600") for truth in truths}
    path = tmp_path / scorer.submission
    scorer.write_submission(path, truths, answers)
    for file in [path] if path.is_file() else list(path.iterdir()):
        text = file.read_bytes().decode()
        assert "no? ?" in text and "\\ud800" not in text and ("\U0001f600" in text or "\\ud83d\\ude00" in text)
    assert OFFICIAL[name](path, *files) == pytest.approx(scored(scorer, truths, answers)[scorer.primary])


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".txt", ""])
def test_popes_lines_in_a_file_of_any_ending(ending: str, tmp_path: Path) -> None:
    truths = [Truth(f"random/{i}", ("yes",), "random", question=f"Is there a {i} in the image?") for i in (1, 2)]
    path = tmp_path / f"llava_random{ending}"
    rows = [{"question": truth.question, "answer": "yes, it is"} for truth in truths]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_answers(path, Pope(), truths) == {"random/1": "yes, it is", "random/2": "yes, it is"}


def test_lists_of_answers_with_ids_are_still_read(tmp_path: Path) -> None:
    truths = [Truth("random/1", ("yes",), "random", question="Is there a cat in the image?")]
    path = tmp_path / "random.json"
    for indent in (None, 2):
        path.write_text(json.dumps([{"question_id": "random/1", "answer": "no"}], indent=indent))
        assert read_answers(path, Pope(), truths) == {"random/1": "no"}
