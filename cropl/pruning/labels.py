"""The loss of a pruned forward: labels are taken out of the call, and gathered when it is known what survived.

Shapes: B rows, S unpruned positions, M surviving positions, C vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cropl.pruning.base import NotSupportedError
from cropl.pruning.gather import Rows, take_labels

Kwargs = dict[str, Any]


def take_out_labels(kwargs: Kwargs) -> tuple[Tensor | None, Kwargs]:
    """The labels of a call, taken out of it, and further arguments of the loss.

    Raises:
        NotSupportedError: `logits_to_keep` or labels name positions that may be gone.
    """
    to_keep = kwargs.get("logits_to_keep", 0)
    if isinstance(to_keep, Tensor):
        raise NotSupportedError("logits_to_keep must be an integer: a tensor would name positions that may be gone")
    if kwargs.get("labels") is None:
        return None, {}
    if to_keep or "shift_labels" in kwargs:
        raise NotSupportedError("labels cannot go with logits_to_keep or shift_labels: give labels alone")
    return kwargs.pop("labels"), {key: value for key, value in kwargs.items() if key == "num_items_in_batch"}


def with_loss(module: Any, output: Any, rows: Rows | None, labels_BS: Tensor, options: Kwargs) -> Any:
    """The output of a forward of `module`, with its loss on the labels of the survivors (all without `rows`)."""
    labels_BM = labels_BS if rows is None else take_labels(rows, labels_BS)
    logits_BMC = output[0] if isinstance(output, tuple) else output.logits
    vocab_size = module.config.get_text_config().vocab_size
    loss = module.loss_function(logits=logits_BMC, labels=labels_BM, vocab_size=vocab_size, **options)
    return (loss, *output) if isinstance(output, tuple) else type(output)(loss=loss, **output)
