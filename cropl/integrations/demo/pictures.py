"""The pictures of the page: test scenes and photographs of the testbed, and what the user uploads."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property, lru_cache

from PIL import Image

from cropl.data.images import load_image, shrink
from cropl.errors import UsageError
from cropl.testbed.questions import questions
from cropl.testbed.scenes import scene
from cropl.testbed.world import PHOTO_FOLDER

MAX_BYTES, MAX_PIXELS = 20_000_000, 50_000_000
"""Of an upload."""
HELD_PIXELS, HELD = 60_000_000, 12
"""Uploads that are held decoded: the oldest go first, the newest stays whatever its size."""

SCENES = (5, 1, 2, 9, 11, 13)
"""Of the testbed's test split: all that a text, a count and a relation are asked about."""
ASKED = {
    "000000006818": "How many buckets are there?",
    "000000204805": "What are the people sitting in?",
    "000000226111": "What does the sign forbid?",
    "000000252219": "What is the person pushing?",
    "000000303818": "What color is the car?",
    "000000412151": "What are the two men looking at?",
    "000000522418": "What is the woman cutting?",
}
"""Questions about photographs; the others are asked what room they show."""


@dataclass(frozen=True)
class Picture:
    """A picture that can be asked about.

    Attributes:
        id: in addresses.
        name: what a person calls it.
        image: as displayed, RGB.
        questions: to start with.
        kind: `scene`, `photo` or `upload`.
    """

    id: str
    name: str
    image: Image.Image
    questions: tuple[str, ...] = ()
    kind: str = "upload"

    @cached_property
    def thumbnail(self) -> bytes:
        """A small JPEG."""
        return _jpeg(self.image, 240)

    @cached_property
    def preview(self) -> bytes:
        """A JPEG that fills the page."""
        return _jpeg(self.image, 1280)


class Pictures:
    """Examples, and the uploads of this run."""

    def __init__(self) -> None:
        photos = json.loads((PHOTO_FOLDER / "photos.json").read_text(encoding="utf-8"))
        # Photographs that scenes of the training split were drawn on come last.
        photos = sorted(photos, key=lambda photo: ("test", "val", "train").index(photo["split"]))
        self._photos = {f"photo-{photo['file'].partition('.')[0]}": photo for photo in photos}
        self.examples = [*(f"scene-{index}" for index in SCENES), *self._photos]
        self._uploads: OrderedDict[str, Picture] = OrderedDict()
        self._lock, self._decoding = threading.Lock(), threading.Lock()
        self._example = lru_cache(maxsize=None)(self._open)

    def __getitem__(self, id: str) -> Picture:
        """UsageError where there is none of this id, or none any more."""
        if id in self.examples:
            return self._example(id)
        with self._lock:
            if id not in self._uploads:
                raise UsageError("this picture is not here any more: upload it again")
            self._uploads.move_to_end(id)
            return self._uploads[id]

    def add(self, data: bytes, name: str) -> Picture:
        """An upload; ImageError says why it cannot be used."""
        if len(data) > MAX_BYTES:
            raise UsageError(f"the file is larger than {MAX_BYTES // 1_000_000} MB")
        name = name[:80] or "upload"
        with self._decoding:  # one at a time: many at once could hold far more pixels than are kept
            image = load_image(data, repr(name), max_pixels=MAX_PIXELS)
        made = Picture(f"upload-{hashlib.sha256(data).hexdigest()[:24]}", name, image)
        with self._lock:
            self._uploads[made.id] = made
            self._uploads.move_to_end(made.id)
            while len(self._uploads) > 1 and (len(self._uploads) > HELD or self._held() > HELD_PIXELS):
                self._uploads.popitem(last=False)
        return made

    def _held(self) -> int:
        return sum(picture.image.width * picture.image.height for picture in self._uploads.values())

    def _open(self, id: str) -> Picture:
        kind, _, number = id.partition("-")
        if kind == "scene":
            one = scene("test", int(number))
            asked = {question.kind: question.text for question in questions(one)}
            first = [asked.pop(kind) for kind in ("text", "relation", "count") if kind in asked]
            return Picture(id, f"Scene {number} of the testbed", one.render(), (*first, *asked.values()), kind)
        photo = self._photos[id]
        question = ASKED.get(number, "What room is this?")
        return Picture(id, photo["caption"].rstrip(". "), load_image(PHOTO_FOLDER / photo["file"]), (question,), kind)


def _jpeg(image: Image.Image, side: int) -> bytes:
    buffer = io.BytesIO()
    shrink(image, side).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
