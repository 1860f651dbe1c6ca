"""`cropl doctor` tells what is there and how to get what is not."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import metadata

import pytest

from cropl.cli import main
from cropl.commands import doctor


def test_it_tells_versions_devices_kernels_disk_and_extras(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["versions", "devices", "attention", "disk", "extras"]
    assert found["versions"]["torch"] == metadata.version("torch") and "lightning" in found["versions"]
    assert "cores" in found["devices"]["CPU"] and found["attention"]["sdpa"]
    assert {"lora", "dev"} <= set(found["extras"])
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for section in found.values() for name in section)


def test_what_is_missing_comes_with_its_remedy(monkeypatch):
    version = metadata.version

    def absent(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert doctor.examine()["extras"]["lora"] == "missing peft: pip install 'peft<1,>=0.19'"
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert doctor.examine()["attention"]["flash_attention_2"].startswith("missing: pip install flash-attn")


def test_another_version_than_cropl_takes_is_told(monkeypatch):
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name in ("peft", "torch") else version(name))
    found = doctor.examine()
    assert found["versions"]["torch"].startswith("0.1, but cropl takes ") and "<3" in found["versions"]["torch"]
    assert found["extras"]["lora"].startswith("peft 0.1, but cropl takes ")
    assert found["extras"]["lora"].endswith(": pip install 'peft<1,>=0.19'")


def test_a_torch_that_cannot_be_imported_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "cannot be imported" in doctor.examine()["devices"]["torch"]


def test_little_disk_is_told(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=2**30))
    monkeypatch.chdir(tmp_path)
    assert "1.0 GiB free, little" in doctor.examine()["disk"]["results (here)"]


def test_wrong_arguments_are_told(capsys):
    assert main(["doctor", "--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag, capsys):
    assert main(["doctor", flag]) == 0
    assert "cropl doctor --json" in capsys.readouterr().out
