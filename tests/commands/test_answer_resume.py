"""Files of answers that are continued: what counts as done, what is replaced, and what is never lost."""

from __future__ import annotations

import json

import pytest

from cropl.commands.answer_files import check_keys, read_questions
from cropl.commands.answer_resume import drop_replaced, read_done
from cropl.errors import UsageError


def line(key, answer=None, error=None, question="What?", image="a.jpg"):
    row = {"key": key, "image": image, "question": question, "answer": answer, "error": error}
    return json.dumps(row) + "\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


def test_done_are_the_keys_of_answers_without_an_error(path):
    assert read_done(path) == {}
    path.write_text(line("1", "yes") + line("2", error="bad image") + "\n" + line("3", "", question="Why?"))
    assert read_done(path) == {"1": ("a.jpg", "What?"), "3": ("a.jpg", "Why?")}


@pytest.mark.parametrize("length", [1, 12, -8])
def test_a_line_that_was_cut_off_goes(path, length):
    path.write_text(line("1", "yes") + line("2", "no")[:length])
    assert list(read_done(path)) == ["1"]
    assert path.read_text() == line("1", "yes")


def test_a_whole_line_without_its_end_stays(path):
    path.write_text(line("1", "yes") + line("2", "no").rstrip("\n"))
    assert list(read_done(path)) == ["1", "2"]
    assert path.read_text() == line("1", "yes") + line("2", "no")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"region": [0, 0, 1, 1]}\n', "line 1 is no answer"),
        ("[1]\n", "line 1 is no answer"),
        (line("1", "yes") + line("2"), "line 2 is no answer"),
        (line("1", "yes") + '{"key": 2}\n', "line 2 is no answer"),
        ("my notes, without an end of line", "its last line is no answer"),
        (line("1", "yes") + line("2", "no") + line("1", "no"), ":3: key '1' has an answer at line 1; keep one"),
        # what looks like a line that was cut off goes only from a file that is one of answers, and if it is no JSON
        ('{"key": "1", "image": "a.jpg", "question": "What?"}\n{"key": "2", "im', "line 1 is no answer"),
        ('{"key": "1", "image": "a.jpg", "question": "What?"}', "its last line is no answer"),
        (line("1", "yes") + '{"key": "2", "image": "a.jpg", "question": "What?"}', "its last line is no answer"),
        (line("1", "yes") + line("1", "no") + line("2", "no")[:-5], ":2: key '1' has an answer at line 1"),
    ],
)
def test_what_is_no_file_of_answers_is_left_alone(path, text, told):
    path.write_text(text)
    with pytest.raises(UsageError, match=told):
        read_done(path)
    assert path.read_text() == text


def test_later_lines_replace_errors_in_their_place(path):
    drop_replaced(path, set())
    answered, again = line("2", "yes"), line("3", error="again")
    path.write_text(line("1", "a") + line("2", error="x") + line("3", error="x") + answered + again)
    drop_replaced(path, set())
    assert path.read_text() == line("1", "a") + answered + again


def test_errors_go_only_with_a_newer_line_or_a_line_that_was_mended(path):
    elsewhere, broken = line("other", error="no such file"), line("line 5", error="no question", question="", image="")
    path.write_text(elsewhere + broken + line("9", "yes") + line("9", error="cannot be"))
    drop_replaced(path, {"line 5"})
    assert path.read_text() == elsewhere + broken + line("9", "yes")
    drop_replaced(path, set())
    assert path.read_text() == elsewhere + line("9", "yes")


def test_a_question_with_the_key_of_a_broken_line_keeps_its_answer(path):
    broken, answered = line("line 2", error="no question", question="", image=""), line("line 2", "yes")
    path.write_text(answered + broken + broken)
    drop_replaced(path, {"line 2"})
    assert path.read_text() == answered + broken


def test_a_kill_while_lines_are_replaced_loses_none(path, monkeypatch):
    text = line("1", error="x") + line("1", "yes")
    path.write_text(text)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("cropl.evaluation.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        drop_replaced(path, set())
    assert path.read_text() == text and list(read_done(path)) == ["1"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("a.jpg\tWhat?\tk\nb.jpg\tWho?\tk\n", "q:2: key 'k' is also that of q:1;"),
        ("a.jpg\tWhat?\t2\nb.jpg\tWho?\n", "q:2: key '2' is also that of q:1;"),
        ("a.jpg\tWhat?\t2\n" + '{"image": "a", "question": "b", "key": null}', "q:2: key '2' is also that of q:1;"),
        ("a.jpg\tWho?\told\n", "q:1: the answer to 'old' is another question's"),
        ("b.jpg\tWhat?\told\n", "q:1: the answer to 'old' is another question's"),
    ],
)
def test_keys_that_cannot_be(tmp_path, lines, told):
    (tmp_path / "q").write_text(lines)
    with open(tmp_path / "q", "rb") as file, pytest.raises(UsageError, match=told):
        check_keys(file, "q", {"old": ("a.jpg", "What?")})


def test_keys_of_questions(tmp_path):
    (tmp_path / "q").write_text("a.jpg\tWhat?\told\n\nbroken\n" + '{"image": "a", "question": "b", "key": 7}')
    with open(tmp_path / "q", "rb") as file:
        assert check_keys(file, "q", {"old": ("a.jpg", "What?")}) == ({"old": 1, "7": 4}, {"line 3"})
        assert file.tell() == 0


def test_a_broken_line_never_collides(tmp_path):
    (tmp_path / "q").write_text("a.jpg\tWhat?\t2\nbroken\nb.jpg\tWho?\tline 2\n")
    done = {"line 2": ("b.jpg", "Who?")}
    with open(tmp_path / "q", "rb") as file:
        assert check_keys(file, "q", done) == ({"2": 1, "line 2": 3}, {"line 2"})
        assert [(key, name) for _, _, key, name in read_questions(file, tmp_path, done)] == [
            ("2", "a.jpg"), ("line 2", "")
        ]  # fmt: skip


def test_answers_of_other_settings_are_not_mixed(path):
    ours = {"model": "m", "budget": 64, "layer": None}
    row = json.loads(line("1", "yes"))
    path.write_text(json.dumps({**row, "settings": ours}) + "\n" + line("2", "no"))
    assert list(read_done(path, ours)) == ["1", "2"]  # the second was written by an earlier version
    with pytest.raises(UsageError, match=r"jsonl:1: was answered with budget 64; resume like that"):
        read_done(path, {**ours, "budget": 128})
