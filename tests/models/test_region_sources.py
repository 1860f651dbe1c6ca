"""Region sources: the same interface, reproducible controls, files and model text that nobody vouches for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cropl.data.sample import Sample
from cropl.grid import Region
from cropl.models import region_sources as sources

IMAGE = Image.new("RGB", (40, 30))


def sample(key, region=(0, 0, 1, 1), question="q", image=IMAGE):
    return Sample(key, question, ["a"], [(0, 0, 9, 9)], 40, 30, Region(*region), "", "", "", image)


SAMPLES = [sample(f"s{i}", (0, 0, i % 4, i % 3), f"question {i}") for i in range(12)]
QUESTIONS = [s.question for s in SAMPLES]
IMAGES = [IMAGE] * len(SAMPLES)


def test_all_are_region_sources(tmp_path):
    (tmp_path / "r.jsonl").write_text("")
    truth = sources.GroundTruth()
    made = [
        truth, sources.Fixed(Region.full()), sources.Center(truth), sources.Random(truth), sources.Known({}),
        sources.FromFile(tmp_path / "r.jsonl"), sources.Predicted(None), sources.ZeroShotGrounding(None),
    ]  # fmt: skip
    assert all(isinstance(one, sources.RegionSource) for one in made)
    names = ["gt", "fixed", "center", "random", "predicted", "file", "predicted", "zero_shot"]
    assert [one.name for one in made] == names


def test_truth_needs_samples():
    assert sources.GroundTruth()(IMAGES, QUESTIONS, SAMPLES) == [s.region for s in SAMPLES]
    with pytest.raises(ValueError, match="'gt' needs samples"):
        sources.GroundTruth()(IMAGES, QUESTIONS)


def test_controls_have_the_size_and_random_is_its_own_seed():
    truth = sources.GroundTruth()
    center = sources.Center(truth)(IMAGES, QUESTIONS, SAMPLES)
    first = sources.Random(truth, 0)(IMAGES, QUESTIONS, SAMPLES)
    for s, c, r in zip(SAMPLES, center, first):
        assert (c.width, c.height) == (r.width, r.height) == (s.region.width, s.region.height)
    backwards = sources.Random(truth, 0)(IMAGES, QUESTIONS[::-1], SAMPLES[::-1])
    assert backwards[::-1] == first
    assert sources.Random(truth, 1)(IMAGES, QUESTIONS, SAMPLES) != first
    fixed = sources.Fixed(Region(0, 0, 2, 2))
    assert len(set(sources.Random(fixed)(IMAGES, QUESTIONS))) > 1  # without samples the question is the key


def test_known_regions_are_found_by_key():
    source = sources.Known({s.key: s.region for s in SAMPLES})
    assert source([], QUESTIONS, SAMPLES[::-1]) == [s.region for s in SAMPLES[::-1]]
    assert sources.Center(source)([], QUESTIONS, SAMPLES) == [s.region.centered() for s in SAMPLES]
    with pytest.raises(ValueError, match="needs samples"):
        source(IMAGES, QUESTIONS)


def test_predicted_in_batches():
    sizes = []

    class Localizer:
        def locate(self, images, questions):
            sizes.append(len(questions))
            return [Region.full()] * len(questions)

    assert len(sources.Predicted(Localizer(), 5)(IMAGES, QUESTIONS)) == 12
    assert sizes == [5, 5, 2]


def test_file_finds_by_key_question_and_image(tmp_path):
    path = tmp_path / "regions.jsonl"
    lines = [
        {"key": "k", "region": [1, 1, 2, 2], "score": 0.5},
        {"image": "folder/a.jpg", "region": [3, 3, 4, 4]},
        {"image": "a.jpg", "question": "which?", "region": [5, 5, 6, 6]},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    asked = [
        sample("k"),
        sample("x", image=tmp_path / "a.jpg"),
        sample("x", question="which?", image=tmp_path / "a.jpg"),
    ]
    found = sources.FromFile(path)([IMAGE] * 3, [s.question for s in asked], asked)
    assert [region.x_min for region in found] == [1, 3, 5]
    with pytest.raises(ValueError, match="no region for key 'other'"):
        sources.FromFile(path)([IMAGE], ["q"], [sample("other")])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "Expecting"),
        ("[]", "expected"),
        ('{"key": "k"}', "expected"),
        ('{"key": "k", "region": [0, 0, 8, 1]}', "0 to 7"),
        ('{"key": "k", "region": [0, 0, 1.5, 1]}', "integer"),
        ('{"key": "k", "region": ["0", 0, 1, 1]}', "integer"),
        ('{"key": "k", "region": [2, 0, 1, 1]}', "reversed"),
        ('{"region": [0, 0, 1, 1]}', "neither 'key' nor 'image'"),
        ('{"key": "k", "region": [0, 0, 1, 1]}\n{"key": "k", "region": [0, 0, 1, 1]}', "second region"),
    ],
)
def test_file_errors_name_the_line(tmp_path, line, says):
    path = tmp_path / "regions.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=rf"regions.jsonl: line [12] .*{says}"):
        sources.FromFile(path)


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("<|object_ref_start|>the cup<|object_ref_end|><|box_start|>(126,250),(374,499)<|box_end|>", (1, 2, 2, 3)),
        ("(0,0),(1000,1000)", (0, 0, 7, 7)),
        ("(500, 500), (400, 400)", (3, 3, 3, 3)),
        ("a (0,0),(100,100) and b (900,900),(999,999)", (0, 0, 7, 7)),
        ("(900,0),(99999,100)", (7, 0, 7, 0)),
        ("(10,10),(10,20)", None),
        ("no box", None),
        ("(1,2)", None),
        ("", None),
    ],
)
def test_grounding_text(text, region):
    assert sources.parse_grounding(text) == (None if region is None else Region(*region))


@settings(max_examples=200)
@given(st.text(alphabet="()0123456789,<|>box_ -.", max_size=60))
def test_grounding_never_raises(text):
    sources.parse_grounding(text)


def test_zero_shot_counts_what_it_cannot_read():
    class Model:
        def inputs(self, images, prompts):
            assert "which?" in prompts[0]
            return prompts

        def generate(self, inputs, **options):
            return ["(0,0),(100,100)", "nothing"][: len(inputs)]

    source = sources.ZeroShotGrounding(Model())
    assert source([IMAGE] * 2, ["which?"] * 2) == [Region(0, 0, 0, 0), Region.full()]
    assert source.unparsable == 1
