"""Loading checkpoints through `transformers`, with one clear line for everything that can go wrong.

Weights are read from safetensors only and no code of a checkpoint is ever run. `testbed:NAME` is a shipped checkpoint
wherever one is named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_backends import PilBackend

from cropl.errors import one_line
from cropl.testbed.weights import resolve

T = TypeVar("T")
_log = logging.getLogger(__name__)


class ModelLoadError(OSError):
    """A checkpoint that is missing, incomplete or damaged, or that could not be fetched."""


def load_config(name_or_path: str) -> PreTrainedConfig:
    """The config of a checkpoint folder or hub name."""
    return _guarded(name_or_path, "config", lambda name: AutoConfig.from_pretrained(name, trust_remote_code=False))


def load_processor(name_or_path: str) -> Any:
    """The processor of a checkpoint folder or hub name, with the image processor of `load_image_processor`."""
    processor = _guarded(
        name_or_path, "processor", lambda name: AutoProcessor.from_pretrained(name, trust_remote_code=False)
    )
    # `AutoProcessor` would hand a backend to the tokenizer as well, which has others.
    processor.image_processor = load_image_processor(name_or_path)
    return processor


def load_model(
    model_class: type[PreTrainedModel],
    name_or_path: str,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Load weights, in eval mode. See `VLM.from_pretrained` for the arguments.

    Raises:
        ModelLoadError: the checkpoint cannot be read, or does not hold every weight of the model in its shape.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if device.type == "cpu" else "auto")

    def load(name: str) -> PreTrainedModel:
        with _without_table():
            found: Any = model_class.from_pretrained(
                name,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are told by `_check_complete`, by name
                output_loading_info=True,
                **options,
            )
        loaded, info = found
        _check_complete(name_or_path, info)
        placed: PreTrainedModel = loaded if "device_map" in options else loaded.to(device)
        return placed.eval()

    return _guarded(name_or_path, "weights", load)


def _guarded(name_or_path: str, what: str, load: Callable[[str], T]) -> T:
    """What `load` makes of the folder or hub name."""
    name_or_path = resolve(name_or_path)
    path = Path(name_or_path)
    is_local = path.exists() or name_or_path.startswith((".", "/", "~"))
    if is_local and not path.is_dir():
        raise ModelLoadError(f"{name_or_path}: no such checkpoint folder; give a folder or a hub name")
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    try:
        hub_log.setLevel(logging.ERROR)  # its warnings about retries would bury the one line below
        return load(name_or_path)
    except (ModelLoadError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = one_line(error)
        if is_local or not isinstance(error, OSError):
            raise ModelLoadError(
                f"{name_or_path}: cannot load the {what} of this checkpoint: {reason[:280]}"
            ) from error
        raise ModelLoadError(
            f"{name_or_path}: cannot fetch the {what}: no such model in the local cache, and the hub is not reachable "
            f"or does not have it; download it where there is a network, or give the path of a local folder"
        ) from error
    finally:
        hub_log.setLevel(level)


def _check_complete(name_or_path: str, info: dict[str, Any]) -> None:
    """Refuse what `transformers` would fill with random numbers. Tied weights are stored once and are not missing."""
    wrong = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    wrong += [
        f"{name} has the shape {tuple(stored)}, and the config asks for {tuple(asked)}"
        for name, stored, asked in sorted(info["mismatched_keys"])
    ]
    wrong += [" ".join(str(message).split()) for message in info["error_msgs"]]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ModelLoadError(
            f"{name_or_path}: the weights of this checkpoint do not fit its config: {'; '.join(wrong[:3])}{more}; "
            f"copy or export the checkpoint again"
        )
    if info["unexpected_keys"]:
        names = sorted(info["unexpected_keys"])
        _log.warning("%s: %d weights are not used by this model, %s first", name_or_path, len(names), names[0])


@contextmanager
def _without_table() -> Iterator[None]:
    """Hold back `transformers`' table of missing weights: `_check_complete` says it in one line."""

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(is_error)
    try:
        yield
    finally:
        log.removeFilter(is_error)


def load_tokenizer(name_or_path: str) -> Any:
    """The tokenizer of a checkpoint folder or hub name."""
    return _guarded(
        name_or_path, "tokenizer", lambda name: AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    )


def load_image_processor(name_or_path: str) -> Any:
    """The image processor of a checkpoint folder or hub name, always the PIL one.

    `transformers` prefers torchvision's where that is installed, whose pixels differ: the same checkpoint would answer
    differently on another machine.

    Raises:
        ModelLoadError: it cannot be read, or there is no PIL one for this checkpoint.
    """

    def load(name: str) -> Any:
        found = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
        if not isinstance(found, PilBackend):
            raise ModelLoadError(
                f"{name_or_path}: its image processor {type(found).__name__} has no PIL backend, the only one used"
            )
        return found

    return _guarded(name_or_path, "image processor", load)
