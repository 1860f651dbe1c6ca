"""Answers questions with a pruned vision-language model, as Lightning's `test` and `predict` steps.

Metrics are counted as integers over all processes, and padding that makes the last batches equal is marked and left
out, so one process and several give the same numbers.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
from PIL import Image

from cropl.errors import RunError
from cropl.evaluation.pipeline.loader import LocalizedAhead
from cropl.evaluation.pipeline.stage import LOCALIZER
from cropl.grid import Region
from cropl.metrics.answer import QUESTION_KINDS, AnswerAccuracy, exact_match
from cropl.metrics.area import AreaRecall
from cropl.models import region_sources as sources
from cropl.models.localizer import Localizer
from cropl.models.vlm import VLM, load_vlm
from cropl.pruning import InnerLLM, keep_mask, pruned

if TYPE_CHECKING:
    from cropl.data.sample import Sample

_log = logging.getLogger(__name__)

RECALL = ("mean_recall", "recall_gt_0.5", "recall_gt_0.7", "recall_gt_0.9")
Source = Literal["predicted", "gt", "center", "random", "none"]


class AnswererModule(L.LightningModule):
    """A VLM under a pruning method, with the localizer that says where to keep tokens.

    Args:
        model: the model that answers: folder, hub name, `testbed:NAME`, or a loaded `VLM`.
        localizer: the trained localizer, likewise; needed by the sources predicted, center and random.
        method: a pruning method such as `ILP(layer=1)`; None answers with every token.
        region_source: where regions come from; "none" for methods that need no region.
        budget: visual tokens of each image (int), or their share (float); None keeps the regions as they are. A budget
            over a whole set needs all its regions at once, which a step does not see: that is `cropl evaluate`.
        max_new_tokens: longest answer.
        seed: of random regions.
        kinds: the kinds of questions that may occur.
        ahead: batches that the localizer may be ahead of the one that is answered; 0 localizes and answers in turn. A
            localizer that is named then runs in a process of its own, a loaded one in a thread; each rank has its own.
            At the trainer's precision 32 nothing else changes. At others regions, and so answers, may: that process
            computes in float32 whatever the precision, and the autocast of a mixed precision does not reach the thread.
        localizer_threads: of torch in the localizer's process; None is half of this one's. On a CPU this one has so
            many fewer (but one) while a loader is localized ahead.

    Batches are lists of `Sample`s, or `{"samples": [...], "valid": [bool, ...]}`; padding is marked in either place.
    With `ahead` they also hold `regions`: data modules of cropl see to it, see `localized_ahead` for other loaders.
    Recall is over the `recall_n` questions that have evidence boxes, and left out where none has.

    Raises:
        ValueError: a region source without the localizer that it needs, or a method that needs regions without one;
            `ahead` where nothing is localized, or batches without regions despite it; at the end of a test, true
            regions of questions none of which has boxes.
        RunError: with `ahead`: the localizer cannot be loaded, is lost, or fails.
    """

    def __init__(
        self,
        model: str | VLM = "testbed:llava",
        localizer: str | Localizer | None = "testbed:localizer",
        method: InnerLLM | None = None,
        region_source: Source = "predicted",
        budget: int | float | None = None,
        max_new_tokens: int = 16,
        seed: int = 0,
        kinds: Sequence[str] = QUESTION_KINDS,
        ahead: int = 0,
        localizer_threads: int | None = None,
    ) -> None:
        super().__init__()
        needs_regions = method is not None and method.needs_request
        if needs_regions and region_source == "none":
            raise ValueError(f"method {method.name!r} needs a region_source other than 'none'")  # type: ignore[union-attr]
        if needs_regions and region_source in ("predicted", "center", "random") and localizer is None:
            raise ValueError(f"region_source {region_source!r} needs a localizer")
        localizes = needs_regions and region_source != "gt"
        _check_ahead(ahead, localizer_threads, localizes, isinstance(localizer, str))
        self.vlm = load_vlm(model, device="cpu") if isinstance(model, str) else model
        self.answering = self.vlm.model.requires_grad_(False).eval()
        self.ahead, self.localizer_threads = ahead, localizer_threads
        self.localizer: Localizer | str | None = None
        if localizes:
            if isinstance(localizer, str) and not ahead:  # ahead, another process loads it
                localizer = Localizer.from_pretrained(localizer, device="cpu")
            self.localizer = localizer
        if self.localizer is not None and not isinstance(self.localizer, str):
            self.locating = self.localizer.vlm.model.requires_grad_(False).eval()
            if ahead and self.locating is self.answering:
                raise ValueError("ahead: localizer and model are one model, which cannot compute twice at a time")
        if isinstance(budget, float) and budget > 1 and budget.is_integer():
            # A recipe's 64 can arrive as 64.0: Python caches unions as sets, so whether the parser tries int or float
            # first depends on what else was imported. Above 1 only a count can be meant.
            budget = int(budget)
        self.method, self.region_source, self.budget = method, region_source, budget
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.accuracy, self.recall = AnswerAccuracy(kinds), AreaRecall()
        self._warned = False

    def localized_ahead(self, loader: Iterable[Any]) -> Iterable[Any]:
        """The loader's batches with their regions, found up to `ahead` batches in front; the loader itself for 0."""
        if not self.ahead:
            return loader
        assert self.localizer is not None
        return LocalizedAhead(loader, self.localizer, self.ahead, str(self.device), self.localizer_threads)

    def regions(
        self, images: Sequence[Image.Image], samples: Sequence[Sample], located: Sequence[Region] | None = None
    ) -> list[Region] | None:
        """The region of each sample; None for a method that needs none.

        Args:
            images, samples: the questions.
            located: what the localizer found for them beforehand; None asks it now.

        Raises:
            ValueError: it would have to be asked now, despite `ahead`.
        """
        if self.method is None or not self.method.needs_request:
            return None
        source: sources.RegionSource = sources.GroundTruth()
        if self.region_source == "gt" and not self._warned:
            missing = next((sample.key for sample in samples if not sample.boxes), None)
            self._warned = missing is not None
            if missing is not None:
                _log.warning(
                    "sample %r has no evidence boxes, maybe others: its true region is the whole image", missing
                )
        if self.region_source != "gt":
            source = self._predicted(located)
        if self.region_source == "center":
            source = sources.Center(source)
        elif self.region_source == "random":
            source = sources.Random(source, self.seed)
        return source(images, [sample.question for sample in samples], samples)

    def _predicted(self, located: Sequence[Region] | None) -> sources.RegionSource:
        if located is not None:
            return sources.Found(located)
        if self.ahead:
            raise ValueError(
                f"ahead={self.ahead}: these batches came without regions; use a data module of cropl, or wrap the "
                "loader: module.localized_ahead(loader)"
            )
        assert self.localizer is not None and not isinstance(self.localizer, str)
        return sources.Predicted(self.localizer)

    @torch.inference_mode()
    def answer(
        self, samples: Sequence[Sample], located: Sequence[Region] | None = None
    ) -> tuple[list[str], list[Region] | None, list[int]]:
        """Answers, regions and visual tokens kept, one each per sample; `located` as for `regions`."""
        images = [sample.picture() for sample in samples]
        inputs = self.vlm.inputs(images, [sample.asked for sample in samples])
        regions = self.regions(images, samples, located)
        if self.method is None:
            texts = self.vlm.generate(inputs, max_new_tokens=self.max_new_tokens)
            return texts, None, [grid.num_tokens for grid in inputs.grids]
        keep = None
        if regions is not None:
            keep = [keep_mask(r, g, self.budget) for r, g in zip(regions, inputs.grids, strict=True)]
        with pruned(self.vlm, self.method, keep=keep) as patch:
            texts = self.vlm.generate(inputs, max_new_tokens=self.max_new_tokens)
        kept_B = patch.kept_B
        assert kept_B is not None
        return texts, regions, kept_B.tolist()

    def test_step(self, batch: Any, index: int) -> None:
        samples, valid, located = _unpack(batch)
        texts, regions, _ = self.answer(samples, located)
        correct = [exact_match(text, sample.answers) for text, sample in zip(texts, samples, strict=True)]
        self.accuracy.update(correct, [sample.kind for sample in samples], valid)
        if regions is not None:  # a question without boxes has no true region
            boxed = [real and bool(sample.boxes) for real, sample in zip(valid, samples, strict=True)]
            self.recall.update(regions, [sample.region for sample in samples], boxed)

    def on_test_epoch_end(self) -> None:
        scores = self.accuracy.compute()  # adds up the counts of all processes
        if self.method is not None and self.method.needs_request:
            recall = self.recall.compute()
            if recall["n"]:
                scores |= {name: recall[name] for name in RECALL}
            elif self.region_source == "gt":
                raise ValueError(
                    "region_source 'gt': no question has evidence boxes, so every true region was the whole image: "
                    "use another region_source, or data with boxes"
                )
            scores["recall_n"] = recall["n"]
        # Every process has the same values by now: reducing them again could only add rounding.
        self.log_dict({f"test/{name}": value.float() for name, value in scores.items()}, rank_zero_only=True)
        self.accuracy.reset()
        self.recall.reset()

    def predict_step(self, batch: Any, index: int) -> list[dict[str, Any]]:
        """One dict per real sample: key, question, prediction, region (or None), tokens_kept."""
        samples, valid, located = _unpack(batch)
        texts, regions, kept = self.answer(samples, located)
        return [
            {
                "key": sample.key,
                "question": sample.question,
                "prediction": texts[i],
                "region": list(regions[i].as_tuple()) if regions else None,
                "tokens_kept": kept[i],
            }
            for i, sample in enumerate(samples)
            if valid[i]
        ]


def _check_ahead(ahead: int, threads: int | None, localizes: bool, named: bool) -> None:
    if ahead < 0:
        raise ValueError(f"ahead must be at least 0, got {ahead}")
    # The localizer's process imports the script that started it, and might wait there for other ranks.
    if ahead and multiprocessing.current_process().name == LOCALIZER:
        raise RunError('a script that localizes ahead keeps its work under `if __name__ == "__main__":`')
    if ahead and not localizes:
        raise ValueError(
            f"ahead={ahead} has no effect: there is something to localize only for a method that needs regions, from "
            "the region_source predicted, center or random; leave it out"
        )
    if threads is not None and not (ahead and named):
        raise ValueError(
            "localizer_threads are of the localizer's own process, which there is with ahead >= 1 and a localizer "
            "that is named; leave it out"
        )
    if threads is not None and threads < 1:
        raise ValueError(f"localizer_threads must be at least 1, got {threads}")


def _unpack(batch: Any) -> tuple[list[Sample], list[bool], Sequence[Region] | None]:
    if not isinstance(batch, Mapping):
        return list(batch), [sample.valid for sample in batch], None
    samples = list(batch["samples"])
    flags = batch.get("valid", [True] * len(samples))
    valid = [bool(flag) and sample.valid for flag, sample in zip(flags, samples, strict=True)]
    return samples, valid, batch.get("regions")
