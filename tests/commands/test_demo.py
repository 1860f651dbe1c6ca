"""`cropl demo`: its arguments, the models it loads, and that other machines are let in only when asked for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from cropl.cli import main


@pytest.fixture
def served(monkeypatch):
    """What would be served, by name."""
    found = {}

    def serve(engine, host, port, browser, tell):
        found.update(engine=engine, host=host, port=port, browser=browser)

    from cropl.integrations.demo import serve as module

    monkeypatch.setattr(module, "serve", serve)
    return found


def test_the_testbed_on_this_machine_alone(served, capsys):
    assert main(["demo", "--device", "cpu"]) == 0
    assert (served["host"], served["port"], served["browser"]) == ("127.0.0.1", 8765, True)
    state = served["engine"].state()
    assert (state["model"], state["localizer"], state["localizes"]) == ("testbed:llava", "testbed:localizer", True)
    assert capsys.readouterr().err == ""


def test_a_model_of_the_user(served, tiny_llava, tiny_localizer, capsys):
    args = ["demo", "--model", tiny_llava, "--device", "cpu", "--dtype", "bfloat16", "--no-browser"]
    assert main([*args, "--host", "0.0.0.0", "--port", "0"]) == 0
    told = capsys.readouterr()
    assert "warning: on 0.0.0.0 everyone" in told.err
    state = served["engine"].state()
    assert (state["dtype"], state["localizes"], state["localizer"], served["browser"]) == ("bfloat16", False, "", False)
    assert main([*args, "--localizer", tiny_localizer]) == 0
    assert served["engine"].state()["localizer"] == tiny_localizer
    assert main([*args, "--zero-shot", tiny_localizer]) == 0
    assert served["engine"].state()["localizes"] and served["engine"].locator.localizer is None


@pytest.mark.parametrize(
    "args, message",
    [
        (["--port", "x"], "--port x: must be an integer"),
        (["--port", "70000"], "ports end at 65535"),
        (["--localizer", "a", "--zero-shot", "b"], "not allowed with"),
        (["--model", "testbed:nothing"], "ships no checkpoint 'nothing'"),
        (["--localizer", "testbed:llava"], "localizers are fine-tuned Qwen2-VL models"),
        (["--dtype", "float8"], "dtype 'float8'"),
    ],
)
def test_wrong_arguments(served, args, message, capsys):
    assert main(["demo", *args]) == 2
    assert message in capsys.readouterr().err


def test_help_and_a_missing_extra(monkeypatch, capsys):
    assert main(["demo", "--help"]) == 0
    assert "--zero-shot" in capsys.readouterr().out
    for name in [name for name in sys.modules if name.startswith(("cropl.integrations.demo.", "uvicorn"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["demo"]) == 2
    assert "pip install 'starlette" in capsys.readouterr().err


@pytest.mark.slow
def test_it_serves_until_it_is_interrupted():
    command = [sys.executable, "-m", "cropl", "demo", "--no-browser", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "loading the models ...\n"
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        with urllib.request.urlopen(address, timeout=30) as reply:
            assert b"cropl demo" in reply.read()
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "", err
