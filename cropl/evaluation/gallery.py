"""Which questions the report shows as pictures, and what stands beside each: successes and failures in equal parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from cropl.evaluation.overlay import svg_overlay
from cropl.grid import Region
from cropl.tiling import Tokens, from_record

Prediction = Mapping[str, Any]

GROUPS = (
    ("agree", "Pruned and right, as with every token"),
    ("rescued", "Right only after pruning"),
    ("lost", "Right with every token, wrong after pruning"),
    ("both wrong", "Wrong either way"),
)


def is_right(answer: Mapping[str, Any]) -> bool:
    """Whether an arm's answer counts as right: most of the benchmark's own credit, or the exact match without one."""
    credit = answer.get("credit")
    return bool(answer["correct"]) if credit is None else credit >= 0.5


def is_judged(answer: Mapping[str, Any]) -> bool:
    """Whether anybody here knows if an arm's answer is right; else only the benchmark's server does."""
    return answer.get("credit") is not None or answer.get("correct") is not None


def group_of(prediction: Prediction, arm: str, dense: str) -> str:
    """Which of `GROUPS` a question falls into, for the pruned run `arm` against the dense run `dense`."""
    pruned_right = is_right(prediction["arms"][arm])
    dense_right = is_right(prediction["arms"][dense])
    if pruned_right:
        return "agree" if dense_right else "rescued"
    return "lost" if dense_right else "both wrong"


def choose(predictions: Sequence[Prediction], arm: str, dense: str, per_group: int = 6) -> dict[str, list[Prediction]]:
    """Up to `per_group` questions of each group, different kinds first and each image at most once in a group.

    The order of the file decides, nothing is picked by hand: a gallery must not flatter.
    """
    chosen: dict[str, list[Prediction]] = {}
    for group, _ in GROUPS:
        members = [p for p in predictions if _can_show(p, arm, dense) and group_of(p, arm, dense) == group]
        taken: list[Prediction] = []
        while members and len(taken) < per_group:
            kinds = [p["kind"] for p in taken]
            images = {p["image_key"] for p in taken}
            fresh = [p for p in members if p["image_key"] not in images]
            if not fresh:
                break
            best = min(fresh, key=lambda p: kinds.count(p["kind"]))
            taken.append(best)
            members.remove(best)
        chosen[group] = taken
    return chosen


def _can_show(prediction: Prediction, arm: str, dense: str) -> bool:
    """Whether it has a picture, and answers under both arms that were judged."""
    answers = [prediction["arms"].get(key) for key in (arm, dense)]
    return prediction.get("grid") is not None and all(one is not None and is_judged(one) for one in answers)


def cards(
    predictions: Sequence[Prediction],
    arm: str,
    dense: str,
    load: Callable[[Prediction], Image.Image],
    per_group: int = 6,
) -> list[dict[str, Any]]:
    """For each group its title and its cards: picture (SVG text), question, answers, what the two runs said, tokens.

    Args:
        load: gives the displayed image of a prediction; only called for the chosen ones.
    """
    groups = []
    for group, members in choose(predictions, arm, dense, per_group).items():
        if members:
            shown = [_card(prediction, arm, dense, load(prediction)) for prediction in members]
            groups.append({"title": dict(GROUPS)[group], "cards": shown})
    return groups


def _card(prediction: Prediction, arm: str, dense: str, image: Image.Image) -> dict[str, Any]:
    grid, keep, region, truth = _overlay(prediction, arm)
    mine = prediction["arms"][arm]
    return {
        "picture": svg_overlay(image, grid, keep, region, truth),
        "kind": prediction["kind"],
        "question": prediction["question"],
        "answers": ", ".join(prediction["answers"]),
        "dense": prediction["arms"][dense]["prediction"],
        "dense_right": is_right(prediction["arms"][dense]),
        "pruned": mine["prediction"],
        "pruned_right": is_right(mine),
        "tokens": mine["tokens_kept"],
        "total": grid.num_tokens,
        "recall": region.recall_against(truth) if region and truth else None,
    }


def check(prediction: Prediction, arm: str, dense: str) -> None:
    """Raise ValueError unless a line of answers has all that a card shows, before its picture is read.

    Raises:
        ValueError: something is missing or of another kind; KeyError, TypeError, AttributeError or OverflowError alike.
    """
    mine, other = prediction["arms"][arm], prediction["arms"][dense]
    texts = {name: prediction[name] for name in ("key", "kind", "question", "image_key")}
    texts |= {"prediction": mine["prediction"], f"prediction of {dense}": other["prediction"]}
    texts |= {f"answer {place}": text for place, text in enumerate(prediction["answers"], start=1)}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{name} {str(text)[:40]!r} is no text")
    if type(mine["tokens_kept"]) is not int:
        raise ValueError(f"tokens_kept {str(mine['tokens_kept'])[:40]!r} is no number of tokens")
    grid, keep, _, _ = _overlay(prediction, arm)
    if keep is not None and len(keep) != grid.num_tokens:
        raise ValueError(f"kept holds {len(keep)} of the {grid.num_tokens} tokens of its grid")


def _overlay(prediction: Prediction, arm: str) -> tuple[Tokens, list[bool] | None, Region | None, Region | None]:
    """Token grid, kept tokens, and the run's and the true region."""
    grid, mine = from_record(prediction["grid"]), prediction["arms"][arm]
    if not isinstance(grid.num_tokens, int) or not grid.image_width / grid.image_height:
        raise ValueError(f"grid of {grid.num_tokens} tokens over {grid.image_width}x{grid.image_height}")
    keep = unpack(mine["kept"], grid.num_tokens) if mine.get("kept") else None
    region = Region(*mine["region"]) if mine.get("region") else None
    truth = Region(*prediction["region"]) if prediction.get("region") else None
    return grid, keep, region, truth


def pack(keep: Sequence[bool]) -> str:
    """Kept tokens as hexadecimal text, four tokens a digit, the first token in the highest bit."""
    bits = "".join("1" if kept else "0" for kept in keep)
    bits += "0" * (-len(bits) % 4)
    return f"{int(bits, 2):0{len(bits) // 4}x}" if bits else ""


def unpack(text: str, count: int) -> list[bool]:
    """The `count` tokens that `pack` wrote."""
    bits = "".join(f"{int(digit, 16):04b}" for digit in text)
    return [bit == "1" for bit in bits[:count]]
