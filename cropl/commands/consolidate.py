"""cropl consolidate FOLDER [OUT]: make one checkpoint file of a sharded one, whose parts several processes wrote.

The file continues or evaluates the run with any strategy, also on one device: cropl validate -c RECIPE --ckpt_path OUT.
It needs room in memory for what was trained, with its optimizer states, and twice that on the disk while it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cropl.commands.arguments import Parser
from cropl.errors import UsageError


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = Parser("consolidate", __doc__)
    parser.add_argument("folder", help="the checkpoint")
    parser.add_argument("out", nargs="?", help="file to write (default: NAME.full.ckpt beside FOLDER)")
    parser.add_argument("--clobber", action="store_true", help="overwrite the file if it exists")
    given = parser.read(args)
    if given is None:
        return 0
    from cropl.parallel import consolidate, consolidated

    folder = Path(given.folder)
    out = consolidated(folder) if given.out is None else Path(given.out)
    if out.is_dir() or (out.exists() and not given.clobber):
        raise UsageError(f"{out} exists; give another name, or --clobber to overwrite a file")
    check(folder)
    print(consolidate(folder, out))
    return 0


def check(folder: Path) -> None:
    """UsageError unless this is a sharded checkpoint that was written to its end, and is safe to read."""
    from cropl.callbacks import complete
    from cropl.parallel import METADATA

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give that of a sharded checkpoint")
    if (folder / complete.WHOLE).is_file():
        raise UsageError(f"{folder} is no sharded checkpoint: {folder / complete.WHOLE} is one file already")
    if (folder / complete.MARKER).exists() and (wrong := complete.damage(folder)):
        raise UsageError(f"{folder} is damaged: {wrong}")
    if not (folder / METADATA).is_file() or not (folder / ".metadata").is_file():
        raise UsageError(f"{folder} is not a sharded checkpoint that was written to its end")
    complete.check_metadata(folder)
