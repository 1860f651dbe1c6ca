"""A folder of results belongs to one whole run, or to the parts of one."""

from __future__ import annotations

import logging
from functools import partial

import pytest

from cropl.errors import RunError
from cropl.evaluation import alone
from cropl.evaluation.alone import working_in


def test_a_whole_run_is_alone(tmp_path):
    out = tmp_path / "out"
    with working_in(out, shared=False):
        for shared in (False, True):
            with pytest.raises(RunError, match="another run is writing there"), working_in(out, shared=shared):
                pass
    assert not list(out.iterdir())
    with working_in(out, shared=False):
        pass


def test_parts_share_it_and_keep_a_whole_run_out(tmp_path):
    part = partial(working_in, tmp_path, shared=True)
    with part(), part(), pytest.raises(RunError), working_in(tmp_path, shared=False):
        pass
    with working_in(tmp_path, shared=False):
        pass


def test_a_failed_run_leaves_it_free(tmp_path):
    with pytest.raises(ZeroDivisionError), working_in(tmp_path, shared=False):
        _ = 1 / 0
    with working_in(tmp_path, shared=False):
        pass


def test_where_files_cannot_be_locked_it_says_so(tmp_path, monkeypatch, caplog):
    def refuse(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(alone.fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), working_in(tmp_path, shared=False):
        pass
    assert "cannot be locked (Operation not supported)" in caplog.text
