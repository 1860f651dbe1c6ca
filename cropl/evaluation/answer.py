"""Answers every question under every run, encoding each image once. No state outside the arguments.

Images go through in chunks, so that memory does not grow with the benchmark: a chunk's images are encoded, all runs
answer all its questions from those features, and the features are dropped. Inside a chunk, questions of about equal
kept length share a batch; what a question answers depends neither on the batch size nor on its neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from cropl.evaluation.answers import Answered, Encoded
from cropl.evaluation.arm_run import Run
from cropl.evaluation.pictures import controlled, displayed
from cropl.metrics.cost import kv_bytes
from cropl.models.inputs import VLMInputs
from cropl.models.text_only import text_inputs
from cropl.models.vlm import VLM
from cropl.pruning import Patch, PreLLM, pruned
from cropl.tiling import Tokens

if TYPE_CHECKING:
    from PIL import Image

    from cropl.data.sample import Sample

PROBES = 2
"""Questions per run whose cache is read."""


def answer_all(
    vlm: VLM,
    samples: Sequence[Sample],
    runs: Sequence[Run],
    groups: Sequence[Sequence[int]],
    missing: Mapping[str, set[int]],
    batch_size: int = 16,
    max_new_tokens: int = 16,
    chunk_images: int = 64,
) -> Iterator[list[Answered | Encoded]]:
    """Greedy answers of `runs` to `samples`, a batch at a time.

    Args:
        vlm: the model of all these runs.
        samples: questions about images.
        runs: planned on exactly these samples, none of them infeasible.
        groups: of the questions to answer, those about one image together.
        missing: for every run key, the questions to answer.
        batch_size: questions per forward.
        max_new_tokens: of an answer.
        chunk_images: images whose features are held at a time.
    """
    wanted = set().union(*(missing[run.key] for run in runs))
    groups = [group for group in groups if wanted & set(group)]
    probes = {run.key: 0 for run in runs}
    if groups:
        _warm_up(vlm, samples[groups[0][0]])
    for start in range(0, len(groups), chunk_images):
        chunk = groups[start : start + chunk_images]
        originals = {index: image for group in chunk for image in [displayed(samples[group[0]])] for index in group}
        began = time.perf_counter()
        features = _encode(vlm, [originals[group[0]] for group in chunk], chunk, batch_size)
        yield [Encoded(len(chunk), time.perf_counter() - began)]
        for run in runs:
            indices = [index for group in chunk for index in group if index in missing[run.key]]
            images, encoded = originals, features
            if run.arm.control is not None:  # each question has its own picture here, as its evidence differs
                images = {i: controlled(originals[i], samples[i], run.arm.control) for i in indices}
                encoded = {}
            ordered = sorted(indices, key=lambda index: (-run.kept[index], len(samples[index].asked), index))
            for first in range(0, len(ordered), batch_size):
                batch = ordered[first : first + batch_size]
                unread = PROBES - probes[run.key]
                yield list(_answer_batch(vlm, samples, run, batch, images, encoded, max_new_tokens, unread))
                probes[run.key] += min(unread, len(batch))


def answer_text_only(
    vlm: VLM, samples: Sequence[Sample], run: str, missing: set[int], batch_size: int, max_new_tokens: int
) -> Iterator[list[Answered | Encoded]]:
    """Greedy answers to questions that have no image: no method has anything to prune there.

    Args:
        vlm: the model.
        samples: the questions.
        run: the key to answer under.
        missing: the questions to answer.
        batch_size, max_new_tokens: as for `answer_all`.
    """
    ordered = sorted(missing, key=lambda index: (len(samples[index].asked), index))
    for first in range(0, len(ordered), batch_size):
        batch = ordered[first : first + batch_size]
        inputs = text_inputs(vlm, [samples[index].asked for index in batch])
        _wait(vlm)
        began = time.perf_counter()
        texts = vlm.generate(inputs, max_new_tokens=max_new_tokens, do_sample=False)
        _wait(vlm)
        share = (time.perf_counter() - began) / len(batch)
        lengths = inputs.tensors["attention_mask"].sum(1).tolist()
        yield [
            Answered(run, index, text, (0,) * vlm.num_layers, length, share)
            for index, text, length in zip(batch, texts, lengths, strict=True)
        ]


def _warm_up(vlm: VLM, sample: Sample) -> None:
    """One untimed token: the first forward pays for start-up, and dense, which comes first, would look slow."""
    vlm.generate(vlm.inputs([displayed(sample)], [sample.asked]), max_new_tokens=1, do_sample=False)
    _wait(vlm)


def _encode(
    vlm: VLM, images: list[Image.Image], chunk: Sequence[Sequence[int]], batch_size: int
) -> dict[int, torch.Tensor]:
    """Features (V_i, D) by question; questions about one image share one tensor."""
    encoded: list[torch.Tensor] = []
    for start in range(0, len(images), batch_size):
        encoded += vlm.encode_images(images[start : start + batch_size])
    _wait(vlm)
    return {index: features for group, features in zip(chunk, encoded, strict=True) for index in group}


def _answer_batch(
    vlm: VLM,
    samples: Sequence[Sample],
    run: Run,
    batch: list[int],
    images: Mapping[int, Image.Image],
    features: Mapping[int, torch.Tensor],
    max_new_tokens: int,
    probes: int,
) -> Iterator[Answered]:
    """`probes` are how many of them have their cache read."""
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
    share = (time.perf_counter() - began) / len(batch)
    seen = [visual_per_layer(vlm, inputs, patch, row) for row in range(len(batch))]
    for row, index in enumerate(batch):
        yield Answered(
            run.key, index, texts[row], seen[row], _text_tokens(vlm, inputs, row), share,
            None if patch is None else patch.positions,
            _probe(vlm, samples, run, index, pictures[row], encoded[row]) if row < probes else None,
        )  # fmt: skip


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


def visual_left(vlm: VLM, inputs: VLMInputs, patch: Patch | None, row: int) -> list[bool] | None:
    """Of each visual token of one row of the last prefill, whether the last layer saw it; None where none was dropped
    inside the language model."""
    if patch is None or patch.survivors_BM is None:
        return None
    position_V = vlm.visual_mask(inputs.tensors["input_ids"][row]).nonzero()[:, 0]
    left: list[bool] = torch.isin(position_V, patch.survivors_BM[row].to(position_V.device)).tolist()
    return left


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
