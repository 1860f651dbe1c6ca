"""Answers every question under every run, encoding each image once. No state outside the arguments.

Images go through in chunks, so that memory does not grow with the benchmark: a chunk's images are encoded, all runs
answer all its questions from those features, and the features are dropped. Inside a chunk, questions of about equal
kept length share a batch; what a question answers depends neither on the batch size nor on its neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from cropl.evaluation.arm_run import Run
from cropl.evaluation.pictures import by_image, controlled, displayed
from cropl.metrics.cost import kv_bytes
from cropl.models.inputs import VLMInputs
from cropl.models.vlm import VLM
from cropl.pruning import Patch, PreLLM, pruned
from cropl.tiling import Tokens

if TYPE_CHECKING:
    from PIL import Image

    from cropl.data.sample import Sample

PROBES = 2
"""Questions per run whose cache is read."""


@dataclass
class Answers:
    """What came out: texts per run and question, and where the time went (seconds).

    Attributes:
        texts: for every run key, one answer per question.
        visual: for every run key and question, the visual tokens that each decoder layer saw, as the patch counted.
        text_tokens: for every question, the prompt's tokens that are not visual.
        positions: for every run key, the positions that its method gives to survivors; None for dense.
        probes: for every run key, (question, bytes) of key-value caches read after a prefill of that question alone.
        seconds: for every run key, generation alone.
        encode_seconds: the vision tower over all images, shared by all runs.
        images: how many distinct images there were.
    """

    texts: dict[str, list[str]] = field(default_factory=dict)
    visual: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    text_tokens: list[int] = field(default_factory=list)
    positions: dict[str, str | None] = field(default_factory=dict)
    probes: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    encode_seconds: float = 0.0
    images: int = 0

    def add(self, other: Answers) -> None:
        """Take in the runs of another model; what is shared stays that of the first."""
        for name in ("texts", "visual", "positions", "probes", "seconds"):
            getattr(self, name).update(getattr(other, name))
        if not self.images:
            self.text_tokens, self.encode_seconds = other.text_tokens, other.encode_seconds
            self.images = other.images


def answer_all(
    vlm: VLM,
    samples: Sequence[Sample],
    runs: Sequence[Run],
    batch_size: int = 16,
    max_new_tokens: int = 16,
    chunk_images: int = 64,
    advance: Callable[[str, int], None] = lambda name, count: None,
) -> Answers:
    """Greedy answers of `runs` to `samples`.

    Args:
        runs: planned on exactly these samples; infeasible ones are left out.
        batch_size: questions per forward.
        chunk_images: images whose features are held at a time.
        advance: told the run and how many questions it has just answered.
    """
    runs = [run for run in runs if run.infeasible is None]
    answers = Answers(text_tokens=[0] * len(samples))
    for run in runs:
        answers.probes[run.key] = []
        answers.texts[run.key], answers.visual[run.key] = [""] * len(samples), [()] * len(samples)
        answers.seconds[run.key] = 0.0
    groups = by_image(samples)
    answers.images = len(groups)
    _warm_up(vlm, samples[0])
    for start in range(0, len(groups), chunk_images):
        chunk = groups[start : start + chunk_images]
        indices = [index for group in chunk for index in group]
        originals = {index: image for group in chunk for image in [displayed(samples[group[0]])] for index in group}
        features = _encode(vlm, [originals[group[0]] for group in chunk], chunk, batch_size, answers)
        for run in runs:
            images, encoded = originals, features
            if run.arm.control is not None:  # each question has its own picture here, as its evidence differs
                images = {i: controlled(originals[i], samples[i], run.arm.control) for i in indices}
                encoded = {}
            _answer_chunk(vlm, samples, run, indices, images, encoded, batch_size, max_new_tokens, answers, advance)
    return answers


def _warm_up(vlm: VLM, sample: Sample) -> None:
    """One untimed token: the first forward pays for start-up, and dense, which comes first, would look slow."""
    vlm.generate(vlm.inputs([displayed(sample)], [sample.asked]), max_new_tokens=1, do_sample=False)
    _wait(vlm)


def _encode(
    vlm: VLM, images: list[Image.Image], chunk: list[list[int]], batch_size: int, answers: Answers
) -> dict[int, torch.Tensor]:
    """Features (V_i, D) by question; questions about one image share one tensor."""
    began = time.perf_counter()
    encoded: list[torch.Tensor] = []
    for start in range(0, len(images), batch_size):
        encoded += vlm.encode_images(images[start : start + batch_size])
    _wait(vlm)
    answers.encode_seconds += time.perf_counter() - began
    return {index: features for group, features in zip(chunk, encoded, strict=True) for index in group}


def _answer_chunk(
    vlm: VLM,
    samples: Sequence[Sample],
    run: Run,
    indices: list[int],
    images: dict[int, Image.Image],
    features: dict[int, torch.Tensor],
    batch_size: int,
    max_new_tokens: int,
    answers: Answers,
    advance: Callable[[str, int], None],
) -> None:
    ordered = sorted(indices, key=lambda index: (-run.kept[index], len(samples[index].asked), index))
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        pictures = [images[index] for index in batch]
        encoded = [features[index] for index in batch] if features else vlm.encode_images(pictures)
        inputs = vlm.inputs(pictures, [samples[index].asked for index in batch], encoded)
        _wait(vlm)
        began = time.perf_counter()
        with pruning(vlm, run, samples, batch, inputs.grids) as patch:
            if patch is not None and patch.looks_into_tower:  # no more timed than the other runs' encoding
                inputs = vlm.inputs(pictures, [samples[index].asked for index in batch], vlm.encode_images(pictures))
                _wait(vlm)
                began = time.perf_counter()
            texts = vlm.generate(inputs, max_new_tokens=max_new_tokens, do_sample=False)
        _wait(vlm)
        answers.seconds[run.key] += time.perf_counter() - began
        answers.positions[run.key] = None if patch is None else patch.positions
        for row, index in enumerate(batch):
            answers.texts[run.key][index] = texts[row]
            answers.visual[run.key][index] = visual_per_layer(vlm, inputs, patch, row)
            answers.text_tokens[index] = _text_tokens(vlm, inputs, row)
        for row, index in enumerate(batch[: PROBES - len(answers.probes[run.key])]):
            answers.probes[run.key].append((index, _probe(vlm, samples, run, index, pictures[row], encoded[row])))
        advance(run.key, len(batch))


def pruning(
    vlm: VLM, run: Run, samples: Sequence[Sample], batch: Sequence[int], grids: Sequence[Tokens]
) -> AbstractContextManager[Patch | None]:
    """The context in which `run` answers `batch` (indices into `samples`, with their token grids): `pruned`, or nothing
    at all for dense."""
    method = run.method([samples[index].key for index in batch])
    if method is None:
        return nullcontext()
    if isinstance(method, PreLLM):
        regions = None if run.regions is None else [run.regions[index] for index in batch]
        return pruned(vlm, method, regions=regions, grids=None if regions is None else grids)
    keep = None if run.keep is None else [run.keep[index] for index in batch]
    return pruned(vlm, method, keep=keep)


def visual_per_layer(vlm: VLM, inputs: VLMInputs, patch: Patch | None, row: int) -> tuple[int, ...]:
    """Visual tokens that entered each decoder layer for one row of the last prefill."""
    if patch is None or patch.visual_BL is None:
        return (inputs.grids[row].num_tokens,) * vlm.num_layers
    return tuple(patch.visual_BL[row].tolist())


def _probe(
    vlm: VLM, samples: Sequence[Sample], run: Run, index: int, image: Image.Image, features: torch.Tensor
) -> int:
    """Bytes of the key-value cache after the prefill of one question, read off the cache itself."""
    inputs = vlm.inputs([image], [samples[index].asked], [features])
    with pruning(vlm, run, samples, [index], inputs.grids) as patch:
        if patch is not None and patch.looks_into_tower:
            inputs = vlm.inputs([image], [samples[index].asked])
        output = vlm.model(**inputs.kwargs(), use_cache=True, logits_to_keep=1)
    return kv_bytes(output.past_key_values)


def _text_tokens(vlm: VLM, inputs: VLMInputs, row: int) -> int:
    attended_S = inputs.tensors["attention_mask"][row].bool()
    return int((attended_S & ~vlm.visual_mask(inputs.tensors["input_ids"][row])).sum())


def _wait(vlm: VLM) -> None:
    if vlm.device.type == "cuda":
        torch.cuda.synchronize(vlm.device)
