"""cropl answer QUESTIONS: answers of a whole file or stream, localizing ahead."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl.commands.answer_files import check_keys, read_questions, row_of
from cropl.commands.answer_lock import alone
from cropl.commands.answer_options import STDIN, Options, read
from cropl.commands.answer_resume import drop_replaced, read_done
from cropl.commands.printing import counted
from cropl.errors import FAILED, UsageError

if TYPE_CHECKING:
    from cropl.evaluation.pipeline import Pipeline
    from cropl.models.vlm import VLM
    from cropl.pruning import InnerLLM, PreLLM


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code: 1 if not a single question is answered."""
    options = read(args)
    if options is None:
        return 0
    with ExitStack() as opened:
        if options.out is not None:
            opened.enter_context(alone(options.out, options.resume))
        done = read_done(options.out, options.settings) if options.resume and options.out is not None else {}
        # Standard input of our own: a thread may wait for it when Python ends, which must not wait for that thread.
        lines: Any = open(0, "rb", closefd=False)  # noqa: SIM115
        total, images = None, options.images or Path()
        if options.questions != STDIN:
            lines = opened.enter_context(open(options.questions, "rb"))
            keys, broken = check_keys(lines, options.questions, done)
            total = len(keys.keys() - done.keys()) + len(broken)
            images = options.images or Path(options.questions).parent
            if options.resume and options.out is not None:
                opened.callback(drop_replaced, options.out, broken)
        if total == 0:
            print("cropl: nothing to answer" if not done else "cropl: everything is answered", file=sys.stderr)
            return 0
        stream = opened.enter_context(_start(options, read_questions(lines, images, done)))
        # Line by line, so that whoever is stopped loses no answer, and whoever reads along waits for none.
        out = sys.stdout if options.out is None else opened.enter_context(open(options.out, "a", encoding="utf-8"))
        if done:
            print(f"cropl: {counted(len(done), 'answer')} kept", file=sys.stderr)
        try:
            failed = _write(stream, out, total, options.settings)
        except KeyboardInterrupt:
            if options.out is not None and options.questions != STDIN:
                print(f"cropl: {options.out} keeps its answers; --resume continues", file=sys.stderr)
            raise
        return FAILED if failed and not done else 0


def _write(stream: Pipeline, out: Any, total: int | None, settings: Mapping[str, Any]) -> bool:
    """Write the answers as they come, and tell of them; whether there was not one, for errors."""
    from cropl.evaluation.progress import Stages

    reasons: dict[str, str] = {}
    began = None
    with Stages() as stages:
        stages.stage("answering", total)
        for result in stream:
            began = began or time.perf_counter() - result.answer_seconds
            print(json.dumps(row_of(result, settings), ensure_ascii=False), file=out, flush=True)
            for kind in ("fallback", "error"):
                if getattr(result, kind) is not None:
                    named = f"{result.pair[2]}: " if result.pair[1] else ""  # what is wrong with a line names it
                    reasons.setdefault(kind, f"{named}{getattr(result, kind)}")
            stages.advance("")
    seconds = 0.0 if began is None else time.perf_counter() - began
    answered = stream.done - stream.errors
    told = [f"{answered:,} answered in {seconds:.1f} s"]
    if seconds and stream.waited > 0.1 * seconds:
        told[0] += f" ({stream.waited:.1f} s of it waiting for the localizer)"
    if stream.fallbacks:
        told.append(
            f"{stream.fallbacks:,} of them with every token, for want of a region (first: {reasons['fallback']})"
        )
    if stream.errors:
        told.append(f"{stream.errors:,} not answered (first: {reasons['error']})")
    print("cropl: " + "; ".join(told), file=sys.stderr)
    return bool(stream.errors and not answered)


def _start(options: Options, questions: Any) -> Pipeline:
    """Load the model; the localizer loads meanwhile, unless it is to run in a thread."""
    import torch

    from cropl.commands.models import open_localizer, open_vlm
    from cropl.evaluation.pipeline import pipeline
    from cropl.evaluation.pipeline.locate import Grounded, Load, Locator
    from cropl.models.region_sources import ZeroShotGrounding

    vlm = open_vlm(options.model, options.device, options.dtype)
    where = options.localizer_device or options.device
    on_cpu = vlm.device.type == "cpu"
    localizer: Locator | Load
    if not options.in_thread:
        dtype = None if options.dtype in (None, "auto") else getattr(torch, options.dtype)
        localizer = Load(options.locates, where, dtype or options.dtype, options.grounding)
        if on_cpu and where in (None, "cpu"):
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            threads = min(torch.get_num_threads(), cores)
            options.threads = options.threads or max(1, threads // 2)
            torch.set_num_threads(max(1, threads - options.threads))
    elif options.grounding:
        localizer = Grounded(ZeroShotGrounding(open_vlm(options.locates, where, options.dtype)))
    else:
        localizer = open_localizer(options.locates, where, options.dtype)
    return pipeline(
        questions, localizer, vlm, _method(options, vlm), budget=options.budget, factor=options.factor,
        batch_size=options.batch_size, window=options.window, ahead=options.ahead,
        max_new_tokens=options.max_new_tokens, threads=options.threads, timeout=options.timeout or None,
        must_localize=options.must_localize,
    )  # fmt: skip


def _method(options: Options, vlm: VLM) -> InnerLLM | PreLLM | None:
    """As asked; else PLC for a model that was trained with one, and ILP for all others."""
    from cropl.commands.models import checkpoint
    from cropl.models.compressor import CONFIG
    from cropl.pruning import ILP, PLC

    compresses = (Path(checkpoint(options.model)) / CONFIG).is_file()
    name = options.method or ("plc" if compresses else "ilp")
    if name != "ilp" and options.layer is not None:
        raise UsageError(f"--layer goes with --method ilp, not with {name}")
    if name == "plc":
        if not compresses:
            raise UsageError(
                f"--method plc: {options.model} has no {CONFIG}; give the folder of a model trained with PLC"
            )
        return PLC.from_pretrained(checkpoint(options.model))
    if name == "prune":
        return ILP(layer=0, positions="compact")
    return None if options.layer is None else ILP(layer=options.layer)
