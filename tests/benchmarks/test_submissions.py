"""Answers as official scripts and servers want them: these make the same score of them, and they can be read again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from cropl.benchmarks.answers import read_answers
from cropl.benchmarks.base import AnswersError, Benchmark, Truth, judged, read_truths
from cropl.benchmarks.join import join
from cropl.benchmarks.names import benchmark
from cropl.benchmarks.pope import Pope
from cropl.benchmarks.scoring import tally
from cropl.benchmarks.textvqa import TextVqa
from cropl.cli import main
from cropl.data.readers.base import Annotation
from cropl.data.readers.llava_questions import SHORT_ANSWER, LlavaQuestions
from cropl.data.readers.pope import Pope as PopeReader
from cropl.data.sample import Sample
from cropl.grid import Region
from cropl.testbed.world import WORDS
from tests.data.readers.conftest import published as published
from tests.reference import submissions
from tests.testbed.test_official import LLAVA
from tests.testbed.test_official import exported as exported

FILES = {
    "gqa": ["testdev_balanced_questions.json"],
    "textvqa": ["TextVQA_0.5.1_val.json"],
    "scienceqa": ["problems.json", "pid_splits.json"],
    "vqav2": ["v2_mscoco_val2014_annotations.json"],
    "pope": ["coco_pope_adversarial.json", "coco_pope_popular.json", "coco_pope_random.json"],
    "mme": ["MME_Benchmark_release_version"],
}
OFFICIAL = {
    "gqa": submissions.gqa,
    "textvqa": submissions.textvqa,
    "scienceqa": lambda path, problems, _: submissions.scienceqa(path, problems),
    "vqav2": submissions.vqav2,
    "pope": submissions.pope,
    "mme": lambda path, _: submissions.mme(path),
}
NASTY = [
    "",
    "No\tway\nyes",
    "\nyes",
    "yes\r",
    "Yes\u2028no",
    "the answer is \u00e9",
    "a.",
    "The answer is B.",
    "no, it",
]


def annotations(name: str, root: Path) -> list[Path]:
    return [root / name / file for file in FILES[name]]


def said(truth: Truth, rng: random.Random) -> str:
    """Something right, wrong or nasty."""
    return rng.choice([truth.answers[0], truth.answers[-1].title() + ".", rng.choice(NASTY), "No", "red", "B. x"])


def scored(scorer: Benchmark, truths: list[Truth], answers: dict[str, str]) -> dict[str, float]:
    return dict(tally(scorer, truths, judged(scorer, truths, answers)).values)


@pytest.mark.parametrize("name", FILES)
def test_official_scripts_make_the_same_score_of_it(name: str, exported: Path, tmp_path: Path) -> None:
    scorer, files = benchmark(name), annotations(name, exported)
    truths = read_truths(scorer, files)
    for seed in range(3):
        rng = random.Random(seed)
        answers = {truth.id: scorer.submitted(said(truth, rng)) for truth in truths}
        path = tmp_path / str(seed) / scorer.submission
        scorer.write_submission(path, truths, dict(rng.sample(list(answers.items()), len(answers))))  # in any order
        expected = scored(scorer, truths, answers)
        assert OFFICIAL[name](path, *files) == pytest.approx(expected[scorer.primary])
        again = read_answers(path, scorer, truths)
        assert scored(scorer, truths, again) == expected
        if name != "mme":  # whose lines cannot hold tabs
            assert again == answers
        assert not list(path.parent.rglob("*.part"))


@pytest.mark.parametrize("name", FILES)
def test_an_answer_that_is_missing_is_named(name: str, exported: Path, tmp_path: Path) -> None:
    scorer = benchmark(name)
    truths = read_truths(scorer, annotations(name, exported))
    answers = {truth.id: "yes" for truth in truths[1:]}
    with pytest.raises(AnswersError, match="1 without an answer"):
        scorer.write_submission(tmp_path / "out", truths, answers)
    with pytest.raises(AnswersError, match=r"1 not among the questions \(other\)"):
        scorer.write_submission(tmp_path / "out", truths, answers | {truths[0].id: "yes", "other": "yes"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FILES)
def test_cropl_score_writes_and_reads_them(name: str, exported: Path, tmp_path: Path, capsys: Any) -> None:
    scorer, rng = benchmark(name), random.Random(0)
    answers = tmp_path / "answers.jsonl"
    if name == "scienceqa":
        rows = json.loads((exported / "scienceqa/llava_test_CQM-A.json").read_text())
        asked = [{"question_id": row["id"], "text": row["conversations"][0]["value"]} for row in rows]
    else:
        asked = [json.loads(line) for line in (exported / name / LLAVA[name]).read_text().splitlines()]
    words = [f"{word.title()}." for word in WORDS] if name == "textvqa" else ["Yes", "no", "red.", "B"]
    lines = [{"question_id": row["question_id"], "prompt": row["text"], "text": rng.choice(words)} for row in asked]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = []
    files = list(map(str, annotations(name, exported)))
    for predictions, more in ((answers, ["--submission", str(tmp_path / "handed")]), (tmp_path / "handed", [])):
        out = ["--out", str(tmp_path / "scores.json")]
        assert main(["score", name, "--predictions", str(predictions), "--annotations", *files, *out, *more]) == 0
        told.append(json.loads((tmp_path / "scores.json").read_text())["scores"])
    assert told[0] == told[1] and told[0][scorer.primary] > 0
    assert OFFICIAL[name](tmp_path / "handed", *map(Path, files)) == pytest.approx(told[0][scorer.primary])


def test_vqas_server_gets_every_question_of_the_split(exported: Path, tmp_path: Path, capsys: Any) -> None:
    """Test-dev is a part of test2015, and a submission covers all of it; nobody here has the answers."""
    rows = [{"question_id": id, "image_id": id // 10, "question": "What?"} for id in (10, 11, 20, 30)]
    (tmp_path / "q.json").write_text(json.dumps({"info": {"questions": 1}, "questions": rows}))
    answers = [
        {"question_id": 20, "prompt": f"What?{SHORT_ANSWER}", "text": "The U.S.A."},
        {"question_id": 10, "text": "Two"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    given = ["score", "vqav2", "--predictions", str(tmp_path / "a.jsonl"), "--annotations", str(tmp_path / "q.json")]
    assert main([*given, "--submission", str(tmp_path / "out.json")]) == 0
    expected = [{"question_id": id, "answer": text} for id, text in ((10, "2"), (11, ""), (20, "usa"), (30, ""))]
    assert json.loads((tmp_path / "out.json").read_text()) == expected
    assert "2 answers to 4 questions" in capsys.readouterr().out
    assert main(given) != 0 and "no questions to score" in capsys.readouterr().err
    for path, says in ((tmp_path, "name a file"), (tmp_path / "q.json/out.json", "name a folder")):
        assert main([*given, "--submission", str(path)]) != 0
        assert says in capsys.readouterr().err


def test_a_benchmark_without_an_official_form_says_so(tmp_path: Path) -> None:
    class Own(TextVqa):
        name = "own"
        write_submission = Benchmark.write_submission

    with pytest.raises(ValueError, match="own has no official form"):
        Own().write_submission(tmp_path / "x", [], {})


def test_popes_lines_belong_to_the_labels_by_their_place(tmp_path: Path) -> None:
    truths = [
        Truth(f"{group}/{i}", ("yes",), group, question=f"Is there a {i} in the image?")
        for group in ("popular", "random")
        for i in (1, 2)
    ]
    lines = [
        json.dumps({"question": f"is there a {i} in the image?", "answer": text}) for i, text in ((1, "Yes"), (2, "no"))
    ]
    path = tmp_path / "mine_random.jsonl"
    path.write_text("\n".join(lines))
    assert read_answers(path, Pope(), truths) == {"random/1": "Yes", "random/2": "no"}
    path.rename(tmp_path / "mine.jsonl")
    path = tmp_path / "mine.jsonl"
    assert read_answers(path, Pope(), truths[:2]) == {"popular/1": "Yes", "popular/2": "no"}
    with pytest.raises(ValueError, match="answers without ids to which of popular, random"):
        read_answers(path, Pope(), truths)
    for text, says in [
        ("\n".join([*lines, lines[0]]), "row 3 is no answer .more answers than there are questions: popular"),
        ("\n".join(lines[::-1]), "row 1 is no answer .another question than the labels have"),
        ("\n".join([lines[0], "[]"]), "row 2 is no answer"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            read_answers(path, Pope(), truths[:2])


def test_mmes_results_with_something_missing(exported: Path, tmp_path: Path) -> None:
    scorer = benchmark("mme")
    truths = read_truths(scorer, annotations("mme", exported))
    scorer.write_submission(tmp_path, truths, {truth.id: "yes" for truth in truths})
    (tmp_path / "OCR.txt").write_text("0001.txt\tIs it?\tYes\n")
    with pytest.raises(ValueError, match="OCR.txt: not an image, a question, its label and an answer"):
        read_answers(tmp_path, scorer, truths)
    (tmp_path / "OCR.txt").unlink()
    with pytest.raises(ValueError, match=r"no OCR\.txt; MME's results are a file for each of its 14 tasks"):
        read_answers(tmp_path, scorer, truths)


def sample(id: str, prompt: str = "", source: str = "") -> Sample:
    return Sample(id, "q?", [], [], 0, 0, Region.full(), "", source, "test", None, id=id, prompt=prompt)


def test_questions_that_do_not_fit_are_named() -> None:
    truths = [Truth(str(id), ("x",)) for id in (1, 2, 3)] + [Truth("4", ("x",), counted=False)]
    scorer = benchmark("gqa")
    assert join(scorer, truths, [sample("3"), sample("1"), sample("2")]) == ["3", "1", "2"]
    assert join(scorer, truths, [sample("3")], whole=False) == ["3"]
    with pytest.raises(AnswersError, match=r"gqa: .* 1 in the annotations and not asked \(2\)"):
        join(scorer, truths, [sample("3"), sample("1"), sample("4")])
    with pytest.raises(AnswersError, match=r"1 asked twice \(3\); 1 not in the annotations \(7\)"):
        join(scorer, truths, [sample(id) for id in ("3", "3", "7")], whole=False)
    with pytest.raises(AnswersError, match=r"1 twice in the annotations \(1\)"):
        join(scorer, [*truths, truths[0]], [sample(id) for id in "123"])


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("OCR tokens: A, B. Question: What IS it? Short answer:", "what is it?"),
        ("OCR tokens: A\nB. Question: What\nIS it? Short answer:", "what\nis it?"),
        ("OCR tokens: a Question: What is it?", "what is it?"),
    ],
)
def test_textvqas_legacy_prompt(prompt: str, question: str) -> None:
    assert TextVqa().known_as("003a", prompt) == f"003a/{question}"


def test_popes_published_files_join_with_llavas_and_their_own(published: Any) -> None:
    """8,910 questions; both ways of numbering lead to the same."""
    labels = [published(f"pope/coco_pope_{category}.json") for category in ("adversarial", "popular", "random")]
    truths = read_truths(Pope(), labels)
    theirs = rows(LlavaQuestions(published("llava/llava_pope_test.jsonl"), "pope"))
    ours = [row for file in labels for row in rows(PopeReader(file))]
    found = {}
    for asked in (theirs, ours):
        ids = join(Pope(), truths, [sample(one.id, one.prompt, one.source) for one in asked])
        assert len(set(ids)) == len(truths) == 8910
        found[id(asked)] = {name: (one.prompt, one.image) for name, one in zip(ids, asked, strict=True)}
    assert found[id(theirs)] == found[id(ours)]


def test_llavas_published_questions_join_with_annotations_of_them(published: Any, tmp_path: Path) -> None:
    """TextVQA's ids are its images', and come again; GQA's are its own. Annotations by the same questions."""
    textvqa = rows(LlavaQuestions(published("llava/llava_textvqa_val_v051_ocr.jsonl"), "textvqa"))
    data = [
        {"question_id": 34_602 + i, "image_id": str(one.image)[:-4], "question": one.question, "answers": ["x"] * 10}
        for i, one in enumerate(textvqa)
    ]
    (tmp_path / "textvqa.json").write_text(json.dumps({"data": data}))
    gqa = rows(LlavaQuestions(published("llava/llava_gqa_testdev_balanced.jsonl"), "gqa"))
    (tmp_path / "gqa.json").write_text(json.dumps({one.id: {"answer": "x", "isBalanced": True} for one in gqa}))
    for name, asked, n in (("textvqa", textvqa, 5000), ("gqa", gqa, 12578)):
        truths = read_truths(benchmark(name), [tmp_path / f"{name}.json"])
        ids = join(benchmark(name), truths, [sample(one.id, one.prompt, one.source) for one in asked])
        assert ids == [truth.id for truth in truths] and len(ids) == n
    by_number = [sample(str(row["question_id"]), f"{row['question']}{SHORT_ANSWER}", "textvqa") for row in data]
    truths = read_truths(TextVqa(), [tmp_path / "textvqa.json"])
    assert join(TextVqa(), truths, by_number) == [truth.id for truth in truths]


def rows(reader: Any) -> list[Annotation]:
    return [one for one in reader if isinstance(one, Annotation)]
