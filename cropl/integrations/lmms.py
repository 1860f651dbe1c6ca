"""The lmms-eval plug-in: any method of cropl on any model that it loads, as `--model cropl`.

```bash
python -m lmms_eval --tasks gqa --model cropl --batch_size 8 \\
    --model_args pretrained=llava-hf/llava-1.5-7b-hf,localizer=./localizer,method=ilp,layer=2,keep=64
```
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from PIL import Image
from tqdm import tqdm

from cropl.data.sample import Sample
from cropl.errors import UsageError
from cropl.extras import remedy
from cropl.grid import Region
from cropl.integrations.arm_answerer import ArmAnswerer
from cropl.integrations.arm_options import ArmOptions
from cropl.integrations.decoding import Decoding

try:
    from lmms_eval.api.instance import GenerationResult, TokenCounts
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise ImportError(f"cropl.integrations.lmms needs lmms-eval: {remedy('lmms-eval')} ({error})") from error

WINDOW = 8
"""Batches whose images are held, located and sorted by length together."""


class CropLmms(lmms):  # type: ignore[misc, unused-ignore]
    """Answers lmms-eval's `generate_until` requests under one arm of a study.

    Args:
        pretrained: see `ArmOptions`, as all that is not named here.
        batch_size: questions of a forward; the command line gives it as text.
        device: where models go; None is the process's own GPU, or the CPU.
        question: field of a task's documents that holds the bare question, for what tells regions: a prompt's
            instructions are none of its business. Documents without it have their whole prompt located.
        max_batch_size: of no use here, as batches are not sized automatically.

    Raises:
        UsageError: an argument that is unknown, of no effect, or wrong.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        question: str = "question",
        max_batch_size: Any = None,
        **given: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UsageError(f"batch_size {batch_size!r}: must be an integer from 1 on")
        if not isinstance(question, str) or not question:
            raise UsageError(f"model_args question {question!r}: must be the name of a field of the documents")
        self.batch_size, self.question = int(batch_size), question
        options = ArmOptions.of({**given, "pretrained": pretrained, "device": _own_gpu(device)})
        arm = options.arm
        vlm = options.open_vlm()
        self.device = vlm.device
        source = options.open_source(self.batch_size)
        self.answerer = ArmAnswerer(vlm, arm, source, options.factor, self.batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Answers in the order of the requests; those with equal settings share batches.

        Token counts are those of text and of the visual tokens that are left after pruning.

        Raises:
            UsageError: generation settings that are unknown here, or a document with several images or with video.
        """
        groups: dict[Decoding, list[int]] = {}
        for index, request in enumerate(requests):
            decoding = Decoding.of(request.args[1], f"task {request.args[4]}")
            groups.setdefault(decoding, []).append(index)
        results: dict[int, GenerationResult] = {}
        kept = total = 0
        size = WINDOW * self.batch_size
        with tqdm(total=len(requests), desc="cropl", disable=self.rank != 0) as bar:
            for decoding, indices in groups.items():
                for start in range(0, len(indices), size):
                    window = indices[start : start + size]
                    samples = [self._sample(*requests[index].args) for index in window]
                    for index, reply in zip(window, self.answerer(samples, decoding), strict=True):
                        counts = TokenCounts(input_tokens=reply.prompt, output_tokens=reply.made)
                        results[index] = GenerationResult(text=reply.text, token_counts=counts)
                        self.cache_hook.add_partial("generate_until", requests[index].args[:2], reply.text)
                        kept, total = kept + reply.kept, total + reply.total
                    if total:
                        bar.set_postfix_str(f"{100 * kept / total:.1f} % of the visual tokens", refresh=False)
                    bar.update(len(window))
        return [results[index] for index in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Not offered: NotImplementedError."""
        raise NotImplementedError(
            "cropl generates answers and rates none, as what is dropped depends on the question alone: use a task with "
            "output_type generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Not offered: NotImplementedError."""
        raise NotImplementedError(
            "cropl answers one question about one image, and a second round would miss what the first one dropped: use "
            "a task with output_type generate_until"
        )

    def _sample(
        self, context: str, gen_kwargs: Any, doc_to_visual: Callable[[Any], Any], doc_id: Any, task: str, split: str
    ) -> Sample:
        """A request as a question of cropl's; its key is the document's own where it has one."""
        doc = self.task_dict[task][split][doc_id]
        image = _image(doc_to_visual(doc), f"task {task}, document {doc_id}")
        asked, key = doc.get(self.question), doc.get("key")
        return Sample(
            key=key if isinstance(key, str) and key else f"{task}-{split}-{doc_id}",
            question=asked if isinstance(asked, str) and asked.strip() else context,
            answers=[],
            boxes=[],
            width=0 if image is None else image.width,
            height=0 if image is None else image.height,
            region=Region.full(),
            kind="",
            source=task,
            split=split,
            image=image,
            prompt=context,
        )


def _image(visuals: Any, where: str) -> Image.Image | None:
    """A document's only image, RGB; None where it has none."""
    found = [] if visuals is None else list(visuals) if isinstance(visuals, list | tuple) else [visuals]
    for one in found:
        if not isinstance(one, Image.Image):
            raise UsageError(f"{where}: has a {type(one).__name__} to look at, and cropl prunes images alone")
    if len(found) > 1:
        raise UsageError(f"{where}: has {len(found)} images, and a region lies on one: take a task with one a question")
    return found[0].convert("RGB") if found else None


def _own_gpu(device: str | None) -> str | None:
    """Of several processes each takes the GPU of its own number."""
    if device not in (None, "cuda") or int(os.environ.get("WORLD_SIZE", 1)) == 1 or not torch.cuda.is_available():
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
