"""cropl shards verify DIR [DIR ...]: compare shards with their manifest, and list everything that is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from cropl.commands.arguments import Parser
from cropl.commands.printing import counted
from cropl.errors import FAILED, UsageError

EPILOG = """Every shard is checked for its size, its structure (each header of the tar file), its index and its SHA-256.
Exit code 0: sound; 1: something is damaged or missing; 2: there are no shards to verify. Folders are local ones."""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = Parser("shards verify", __doc__, EPILOG)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folder with shards and their manifest.json")
    parser.add_argument("--images", action="store_true", help="also decode every image and record; takes longer")
    given = parser.read(args)
    if given is None:
        return 0
    from cropl.data.manifest import NAME, Manifest, ShardError
    from cropl.data.verify import Fault, tar_files, verify_folder
    from cropl.evaluation.progress import Stages

    found: dict[str, list[Fault]] = {}
    lost: list[str] = []
    with Stages() as stages:
        for folder in dict.fromkeys(given.folders):
            try:
                found[folder] = verify_folder(folder, given.images, stages)
            except ShardError as error:
                lost.append(str(error))
    if not found:
        raise UsageError("; ".join(lost))
    damaged = shards = samples = size = unusable = 0
    for folder, faults in found.items():
        for fault in faults:
            message = shorten(fault.message, 400, placeholder=" ...")  # a hostile record's content can be endless
            print(f"{Path(folder) / fault.file}: {message}")
        files = {fault.file for fault in faults}
        unusable += NAME in files
        damaged += len(files - {NAME})
        if NAME in files:
            shards += len(tar_files(folder))
            continue
        manifest = Manifest.read(folder)
        named = [shard.file for shard in manifest.shards]
        shards, samples = shards + len(named), samples + len(manifest)
        size += sum(shard.bytes for shard in manifest.shards)
        for file in sorted(set(tar_files(folder)) - set(named)):
            print(f"note: {Path(folder) / file}: the manifest does not name it; it is never read")
    for message in lost:
        print(message)
    lines = [f"{damaged:,} of {counted(shards, 'shard')} {'is' if damaged == 1 else 'are'} damaged"] if damaged else []
    lines += [f"{counted(unusable, 'manifest')} cannot be used"] if unusable else []
    failed = bool(lines or lost)
    if not lines:
        lines = [f"{counted(shards, 'shard')}, {counted(samples, 'sample')}, {size / 1e6:,.1f} MB: sound"]
    lines += [f"{counted(len(lost), 'folder')} cannot be verified"] if lost else []
    print("; ".join(lines))
    return FAILED if failed else 0
