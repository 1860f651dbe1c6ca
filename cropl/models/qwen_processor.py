"""The processor of Qwen2-VL checkpoints.

`Qwen2VLProcessor` cannot be built without torchvision (its video processor needs it), so the image processor and the
tokenizer are composed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cropl.models.text import special_tokens
from cropl.prompt import Rendered, Span, clean_question, clean_text

DEFAULT_MAX_PIXELS = 448 * 448
"""The paper does not say at which size its localizer looks; far above this a 2B one costs more than it saves a 7B."""


class QwenProcessor:
    """The image processor and the tokenizer of a Qwen2-VL checkpoint.

    Args:
        image_processor: a `Qwen2VLImageProcessor` (PIL).
        tokenizer: the checkpoint's, with its chat template.
        max_pixels: upper bound of the resized image's area; the checkpoint's own where that is lower.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        smallest, largest = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
        if max_pixels < smallest:
            raise ValueError(f"max_pixels={max_pixels} is below the checkpoint's least image area {smallest}")
        self.size = {"shortest_edge": smallest, "longest_edge": min(largest, max_pixels)}

    def prompt(self, question: str) -> str:
        """The chat prompt of one image and one question, up to where the answer starts."""
        text = clean_question(question, special_tokens(self.tokenizer))
        return self._chat([_message("user", text, image=True)], True)

    def conversation(self, turns: Sequence[tuple[str, str]], image: bool, clean: bool = True) -> Rendered:
        """A conversation in the chat template; an answer ends with the end-of-turn token, without what follows it.

        Raises:
            ValueError: a question is empty, or the template writes an earlier turn in another way once others follow,
                so that what is trained would not be what is asked at inference.
        """
        special, end = special_tokens(self.tokenizer), self.tokenizer.eos_token
        messages: list[dict[str, Any]] = []
        answers: list[Span] = []
        text = ""
        for question, answer in turns:
            asked, told = clean_question(question, special), clean_text(answer, special) if clean else answer
            messages.append(_message("user", asked, image=image and not answers))
            prompt = self._chat(messages, True)
            messages.append(_message("assistant", told))
            whole = self._chat(messages, False)
            if not prompt.startswith(text) or not whole.startswith(f"{prompt}{told}{end}"):
                raise ValueError(
                    f"the tokenizer's chat template does not write answer {len(answers) + 1} as its prompt, the answer "
                    f"and {end!r}, with all that precedes left as it was: it cannot be trained on conversations"
                )
            answers.append((len(prompt), len(f"{prompt}{told}{end}")))
            text = whole
        start = self._chat([_message("user", "\0", image)], True).index("\0")
        return Rendered(text, (start, start + len(clean_question(turns[0][0], special))), answers)

    def _chat(self, messages: list[dict[str, Any]], ask: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        return text

    def batch_decode(self, ids: Tensor, skip_special_tokens: bool = True) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens)
        return texts


def _message(role: str, text: str, image: bool = False) -> dict[str, Any]:
    content: list[dict[str, str]] = [{"type": "text", "text": text}]
    return {"role": role, "content": [{"type": "image"}, *content] if image else content}
