"""What a run has found stays, whole lines of it, and is nobody else's."""

from __future__ import annotations

import pytest

from cropl.errors import RunError, UsageError
from cropl.evaluation.journal import FOLDER, Journal, Memory, forget, opened
from cropl.evaluation.part import Part

TOLD = {"model": {"name": "m", "dtype": "float32"}, "questions": "abc"}


def journal(folder, part=None, told=TOLD, **options):
    return Journal(folder, "answers", told, part or Part(), **options)


def test_all_parts_read_what_each_wrote(tmp_path):
    first, second = journal(tmp_path, Part(0, 2)), journal(tmp_path, Part(1, 2))
    first.append([{"key": "a"}, {"key": "ä\n"}])
    second.append([{"key": "b"}])
    assert list(first.read()) == list(second.read()) == [{"key": "a"}, {"key": "ä\n"}, {"key": "b"}]
    first.close()
    second.close()
    again = journal(tmp_path)  # another number of processes
    assert [one["key"] for one in again.read()] == ["a", "ä\n", "b"]
    again.close()


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_line_that_was_cut_off_was_never_there(tmp_path, cut):
    one = journal(tmp_path)
    one.append([{"key": "a"}, {"key": "b"}])
    one.close()
    content = one.path.read_bytes()
    one.path.write_bytes(content[:-cut])
    other = journal(tmp_path, Part(1, 2))
    assert list(other.read()) == [{"key": "a"}]
    other.close()
    again = journal(tmp_path)
    again.append([{"key": "c"}])
    assert list(again.read()) == [{"key": "a"}, {"key": "c"}]
    again.close()


def test_even_the_first_line_may_be_cut_off(tmp_path):
    one = journal(tmp_path)
    one.close()
    one.path.write_bytes(one.path.read_bytes()[:-3])
    again = journal(tmp_path, told={"questions": "others"})
    again.append([{"key": "c"}])
    assert list(again.read()) == [{"key": "c"}]
    again.close()


def test_other_settings_are_told_apart(tmp_path):
    journal(tmp_path).close()
    changed = {**TOLD, "questions": "def", "max_new_tokens": 8}
    with pytest.raises(UsageError, match='questions "abc", now "def"; max_new_tokens null, now 8.*--fresh'):
        journal(tmp_path, told=changed)
    journal(tmp_path).close()  # and the lock is free again


def test_two_runs_at_once_are_refused(tmp_path):
    one = journal(tmp_path)
    with pytest.raises(RunError, match="another run is writing it"):
        journal(tmp_path)
    one.close()
    journal(tmp_path).close()


def test_damage_is_told_with_its_line(tmp_path):
    one = journal(tmp_path)
    one.append([{"key": "a"}])
    one.close()
    with open(one.path, "ab") as file:
        file.write(b"{broken\n{}\n")
    again = journal(tmp_path)
    with pytest.raises(RunError, match="line 3 is damaged"):
        list(again.read())
    again.close()


def test_finds_lie_with_the_run_or_in_a_cache_for_equal_ones(tmp_path):
    with opened(None, "regions", TOLD, Part()) as finds:
        assert isinstance(finds, Memory)
    out, cache = tmp_path / "out", tmp_path / "cache" / "gqa"
    with opened(out, "regions", TOLD, Part()) as finds:
        finds.append([{"key": "a"}])
    with opened(out, "regions", TOLD, Part(), cache) as finds:
        assert not list(finds.read())
        finds.append([{"key": "b"}])
    with opened(tmp_path / "elsewhere", "regions", TOLD, Part(), cache) as finds:
        assert list(finds.read()) == [{"key": "b"}]
    with opened(out, "regions", {**TOLD, "questions": "others"}, Part(), cache) as finds:
        assert not list(finds.read())
    forget([out, tmp_path / "never"])
    assert not (out / FOLDER).exists() and len(list(cache.parent.iterdir())) == 2


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b", "1/2/3", "1/0", None])
def test_parts_are_checked(text):
    with pytest.raises(UsageError, match="INDEX/COUNT"):
        Part.parse(text)


def test_parts_share_whole_images():
    groups = [[0, 1], [2], [3, 4, 5], [6]]
    parts = [Part.parse(f"{index}/3") for index in range(3)]
    assert [part.share(groups) for part in parts] == [[[0, 1], [6]], [[2]], [[3, 4, 5]]]
    assert Part().whole and Part().share(groups) == groups and not parts[0].whole
