"""A file of answers belongs to one run: others are refused, and what it leaves is as it was found."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest

from cropl.cli import main
from cropl.commands import answer_lock
from cropl.commands.answer_lock import alone
from cropl.errors import UsageError
from cropl.evaluation.files import write_atomically

fcntl = pytest.importorskip("fcntl", reason="needs file locks")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "questions.tsv").write_text("a.jpg\tWhat?\n")
    return tmp_path / "questions.tsv"


def test_another_run_is_refused_until_the_first_one_ends(path):
    with alone(path, resume=False):
        with pytest.raises(UsageError, match=r"answers\.jsonl: another run is writing it"), alone(path, resume=True):
            pass
        path.write_text("an answer")
        write_atomically(path, "all answers")
    with alone(path, resume=True):
        pass
    assert path.read_text() == "all answers"


def test_a_run_touches_nothing_while_another_process_holds_the_file(path, questions, capsys):
    text = '{"key": "1", "image": "a.jpg", "quest'  # the line that the other process writes
    path.write_text(text)
    hold = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        code = main(["answer", str(questions), "-o", str(path), "--resume", "--model", "/no/such/model"])
        other.communicate(b"\n")
    assert code == 2 and "another run is writing it" in capsys.readouterr().err
    assert path.read_text() == text


def test_the_lock_of_a_file_that_was_replaced_says_nothing(path, monkeypatch):
    path.write_text("old")
    locked = []

    def late(file, path):  # the run that held it replaces it before we get the lock
        locked.append(file)
        if len(locked) == 1:
            write_atomically(path, "new")

    monkeypatch.setattr(answer_lock, "_lock", late)
    with alone(path, resume=True):
        assert locked[0].closed and os.fstat(locked[1].fileno()).st_ino == path.stat().st_ino
    assert len(locked) == 2 and locked[1].closed


def test_a_file_that_came_meanwhile_is_not_continued(path):
    path.write_text("another run's")
    with pytest.raises(UsageError, match="exists; give another name, or --resume"), alone(path, resume=False):
        pass
    assert path.read_text() == "another run's"


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_fails_at_once_leaves_no_empty_file(path, questions, resume, capsys):
    more = ["--resume"] if resume else []
    assert main(["answer", str(questions), "-o", str(path), "--model", "/no/such/model", *more]) != 0
    assert "/no/such/model" in capsys.readouterr().err and not path.exists()


def test_what_was_there_or_is_answered_stays(path):
    path.write_text("")
    with pytest.raises(KeyboardInterrupt), alone(path, resume=True):
        raise KeyboardInterrupt
    assert path.exists()
    path.unlink()
    with pytest.raises(KeyboardInterrupt), alone(path, resume=False):
        path.write_text("an answer")
        raise KeyboardInterrupt
    assert path.read_text() == "an answer"


def test_a_file_system_without_locks_is_told(path, monkeypatch, capsys):
    def refused(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with alone(path, resume=False):
        assert "cannot be locked (no locks available)" in capsys.readouterr().err


def test_a_system_without_locks(path, monkeypatch):
    monkeypatch.setattr(answer_lock, "fcntl", None)
    with alone(path, resume=False), alone(path, resume=True):
        assert path.exists()


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_answers_never_go_into_the_questions(questions, tmp_path, link, capsys):
    link(questions, tmp_path / "linked")
    for out in (questions, tmp_path / "linked"):
        for more in ([], ["--resume"]):
            assert main(["answer", str(questions), "-o", str(out), "--model", "/no/such/model", *more]) == 2
            assert "is the file of questions itself" in capsys.readouterr().err
    assert questions.read_text() == "a.jpg\tWhat?\n"


def test_a_file_that_is_replaced_keeps_its_permissions(path):
    write_atomically(path, "one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    write_atomically(path, "two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() == "two"
