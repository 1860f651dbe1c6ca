"""MME as its authors hand it out: a folder per task, a text file per image, two questions in it.

The text lies beside its image (`existence/000000006040.txt`), or in `questions_answers_YN` with the images in `images`
(`artwork`, `celebrity`, `landmark`, `posters`, `scene`). A line is a question, a tab, and Yes or No.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from cropl.data.readers.base import Annotation, BadRow, Reader, text
from cropl.data.readers.llava_questions import SHORT_ANSWER

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ENDINGS = (".jpg", ".png", ".jpeg")

INSTRUCTION = re.compile(r"\s*Please answer yes or no\.?$")


class Mme(Reader):
    """All 14 tasks: 2,374 questions about 1,187 images.

    A row is one image. Both its questions stand or fall together, because MME scores the pair; they are
    `existence/000000006040` and `existence/000000006040-2`. As in LLaVA's file the prompt asks for a single word or
    phrase in place of "Please answer yes or no."; the question is without either.

    Args:
        folder: `MME_Benchmark_release_version`, with a folder for each task.
        images: where the images lie in the same layout; None where no images are at hand. Their endings differ from
            image to image and only their files tell them, so without `images` they are looked up in `folder`.
    """

    def __init__(self, folder: str | Path, images: str | Path | None = None) -> None:
        super().__init__(folder, images)

    @property
    def files(self) -> list[Path]:
        """The questions of every image, task by task."""
        found = []
        for task in (*PERCEPTION, *COGNITION):
            folder = self.file / task
            apart = folder / "questions_answers_YN"
            found += sorted((apart if apart.is_dir() else folder).glob("*.txt"))
        return found

    def rows(self) -> Iterator[Path]:
        """The file with the questions of each image.

        Raises:
            ValueError: a task has none.
        """
        files = self.files
        if missing := {*PERCEPTION, *COGNITION} - {self._task(file) for file in files}:
            raise ValueError(
                f"{self.file}: no questions of {', '.join(sorted(missing))}; "
                "give the folder that has a folder for each of MME's 14 tasks"
            )
        return iter(files)

    def parse(self, row: Path, number: int) -> Iterator[Annotation]:
        """The two questions about one image."""
        task = self._task(row)
        pair = self.pair(row)
        image = self._image(task, row.stem)
        for id, (asked, answer) in zip((f"{task}/{row.stem}", f"{task}/{row.stem}-2"), pair, strict=True):
            question = text(INSTRUCTION.sub("", asked), "question")
            yield Annotation(
                id=id,
                question=question,
                prompt=question + SHORT_ANSWER,
                answers=(answer,),
                source="mme",
                split="test",
                image=image,
            )

    def pair(self, row: Path) -> list[tuple[str, str]]:
        """The two questions about an image as they are written, each with its answer."""
        where = f"{self._task(row)}/{row.name}"
        lines = [line for line in row.read_text(encoding="utf-8").split("\n") if line.strip()]
        if len(lines) != 2:
            raise BadRow("not two questions about the image", f"{where}: {len(lines)}")
        found = []
        for line in lines:
            asked, _, answer = line.rpartition("\t")
            if answer.strip().lower() not in ("yes", "no"):
                raise BadRow("not a question, a tab, and Yes or No", f"{where}: {line[:80]!r}")
            found.append((asked.strip(), answer.strip()))
        return found

    def _task(self, file: Path) -> str:
        return file.relative_to(self.file).parts[0]

    def _image(self, task: str, stem: str) -> str:
        for place in (task, f"{task}/images"):
            for ending in ENDINGS:
                if ((self.images or self.file) / place / f"{stem}{ending}").is_file():
                    return f"{place}/{stem}{ending}"
        raise BadRow("no image to the questions", f"{task}/{stem}.txt")
