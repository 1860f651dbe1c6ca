"""The page in a real browser: upload, ask, change the budget, draw a region, a bad file, keys, narrow and dark."""

from __future__ import annotations

import re
import shutil
import threading

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (on Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    """The page with its first answer; whatever it complains of, or asks of another host, fails the test."""
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    complaints = []
    made = browser.new_page(viewport={"width": 1280, "height": 900})
    # A refused request is told on the console by the browser itself: the page shows it to the user.
    made.on("console", lambda m: complaints.append(m.text) if m.type == "error" and "400" not in m.text else None)
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on("request", lambda r: None if r.url.startswith((address, "data:")) else complaints.append(r.url))
    made.goto(address)
    expect(made.locator("#dense-answer")).to_have_text("park")
    settled(made)
    yield made
    made.close()
    assert complaints == []


def settled(page):
    from playwright.sync_api import expect

    page.wait_for_timeout(700)  # longer than the page waits for further changes
    expect(page.locator("#status")).to_have_text("")
    expect(page.locator(".stale")).to_have_count(0)


def region(page):
    return [int(page.locator(f"#{name}").input_value()) for name in ("x0", "y0", "x1", "y1")]


def kept(page):
    return int(page.locator("#costs tbody tr").first.locator("td").first.text_content())


def drag(page, start, end):
    """With the mouse, from block to block."""
    stage = page.locator("#stage").bounding_box()
    places = [[stage[axis] + stage[side] * (at + 0.5) / 8 for axis, side, at in zip("xy", ("width", "height"), block)]
              for block in (start, end)]  # fmt: skip
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=6)
    page.mouse.up()


def test_a_region_is_drawn_and_the_answer_changes(page):
    from playwright.sync_api import expect

    assert region(page) == [2, 2, 7, 4] and kept(page) == 117
    expect(page.locator("#pruned-answer")).to_have_text("park")
    drag(page, (0, 6), (2, 7))
    settled(page)
    assert region(page) == [0, 6, 2, 7] and kept(page) < 117
    expect(page.locator("#pruned-answer")).not_to_have_text("park")
    expect(page.locator("#dense-answer")).to_have_text("park")
    assert page.locator("#predicted").is_visible() and "M" in page.locator("#outline").get_attribute("d")
    page.click("#reset")
    settled(page)
    assert region(page) == [2, 2, 7, 4]
    expect(page.locator("#pruned-answer")).to_have_text("park")


def test_keys_and_numbers_do_what_the_mouse_does(page):
    page.focus("#stage")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowLeft")
    settled(page)
    assert region(page) == [2, 1, 6, 3]
    page.fill("#x0", "5")
    page.keyboard.press("Tab")
    settled(page)
    assert region(page) == [5, 1, 6, 3] and page.locator("#region").get_attribute("x") == "625"
    page.fill("#x1", "4")
    page.keyboard.press("Tab")
    assert "left to right" in page.locator("#error").text_content()
    page.focus("#stage")
    page.keyboard.press("Escape")
    settled(page)
    assert region(page) == [2, 2, 7, 4]


def test_budget_layer_and_method_change_the_answer(page):
    page.uncheck("#follow")
    page.fill("#budget", "40")
    settled(page)
    assert kept(page) == 40 and page.locator("#slider").input_value() == "40"
    page.focus("#slider")
    page.keyboard.press("ArrowRight")
    settled(page)
    assert kept(page) == 41
    before = page.locator("#costs tbody tr").nth(2).locator("td").first.text_content()
    page.focus("#layer")
    page.keyboard.press("ArrowRight")
    settled(page)
    assert "2 of 6" in page.locator("#layer-value").text_content()
    assert page.locator("#costs tbody tr").nth(2).locator("td").first.text_content() != before
    page.select_option("#method", "vispruner")
    settled(page)
    assert kept(page) == 41 and page.locator("#layer").is_disabled()
    assert "looks at no region" in page.locator("#hint").text_content()
    page.fill("#budget", "9999")
    page.locator("#error").wait_for()
    assert "has 576 visual tokens" in page.locator("#error").text_content()
    page.select_option("#method", "dense")
    settled(page)
    assert not page.locator("#pruned-card").is_visible() and not page.locator("#error").is_visible()


def milliseconds(text):
    number, unit = text.split()
    return float(number) * {"ms": 1, "s": 1000}[unit]


def test_the_localizers_time_has_its_row(page):
    def row(name):
        cells = page.locator("#costs tbody tr").filter(has_text=name).last.locator("td").all_text_contents()
        return *map(milliseconds, cells[:2]), float(cells[2].removesuffix(" %"))

    def rows():
        return page.locator("#costs tbody th").all_text_contents()

    assert rows()[-2:] == ["Time of the answer", "… with localizer"]
    answer, whole = row("Time of the answer"), row("… with localizer")
    localizing = milliseconds(page.locator("#pruned-fact").text_content().rpartition("localizing ")[2])
    assert whole[0] == pytest.approx(answer[0] + localizing, abs=100 if whole[0] >= 1000 else 2)
    assert whole[1] == answer[1] and whole[2] == pytest.approx(100 * whole[0] / whole[1], rel=0.1)
    drag(page, (0, 6), (2, 7))  # nobody has to tell it
    settled(page)
    assert rows()[-1] == "Time of the answer" and "localizing" not in page.locator("#pruned-fact").text_content()
    page.click("#reset")
    settled(page)
    assert rows()[-1] == "… with localizer"
    page.select_option("#method", "vispruner")
    settled(page)
    assert rows()[-1] == "Time of the answer"
    page.select_option("#method", "dense")
    settled(page)
    assert rows()[-1] == "Time of the answer"


def test_an_upload_is_asked_about_and_a_bad_file_is_told(page, photo, tmp_path):
    from playwright.sync_api import expect

    bad = tmp_path / "notes.png"
    bad.write_text("these are words")
    page.set_input_files("#file", bad)
    expect(page.locator("#error")).to_contain_text("'notes.png': not a JPEG, PNG or WebP image")
    page.set_input_files("#file", photo)
    expect(page.locator("#status")).to_have_text("Uploaded: ask about it.")
    assert not page.locator("#error").is_visible() and page.locator("#image").get_attribute("alt") == "scene.png"
    page.fill("#question", "   ")
    page.click("#ask")
    expect(page.locator("#error")).to_contain_text("the question is empty")
    page.fill("#question", "What color is the heart?")
    page.keyboard.press("Enter")
    settled(page)
    expect(page.locator("#dense-answer")).to_have_text("red")
    assert region(page) != [2, 2, 7, 4]


def test_a_question_that_waits_says_so(page, browser, engine, monkeypatch):
    from playwright.sync_api import expect

    go, answer = threading.Event(), engine.answer

    def slow(asked, cancelled):
        if asked.question == "slow":
            yield {"stage": "localizing"}
            go.wait(60)
        yield from answer(asked, cancelled)

    monkeypatch.setattr(engine, "answer", slow)
    other = browser.new_page()
    other.goto(page.url)
    expect(other.locator("#dense-answer")).to_have_text("park")
    settled(other)
    other.fill("#question", "slow")
    other.click("#ask")
    expect(other.locator("#status")).to_have_text("Localizing …")
    page.click("#ask")
    expect(page.locator("#status")).to_have_text("Waiting in line: 1 question ahead …")
    go.set()
    settled(page)
    settled(other)
    other.close()


def test_the_probability_is_shown_on_the_grid(page):
    page.check("[data-layer=heat]")
    opacity = [float(each.get_attribute("fill-opacity")) for each in page.locator("#heat rect").all()]
    assert len(opacity) == 64 and max(opacity) > 0.7 and min(opacity) < 0.01
    assert opacity[8 * 3 + 4] > 0.7  # on the sign
    stage = page.locator("#stage").bounding_box()
    page.mouse.move(stage["x"] + stage["width"] * 4.5 / 8, stage["y"] + stage["height"] * 3.5 / 8)
    assert re.fullmatch(r"block 4, 3: \d+ %", page.locator("#readout").text_content())


def test_what_is_read_out_is_of_this_picture(page, photo):
    from playwright.sync_api import expect

    stage, readout = page.locator("#stage").bounding_box(), page.locator("#readout")
    pointed = (stage["x"] + stage["width"] * 4.5 / 8, stage["y"] + stage["height"] * 3.5 / 8)
    page.mouse.move(*pointed)
    assert re.fullmatch(r"block 4, 3: \d+ %", before := readout.text_content())
    page.fill("#question", "What color is the heart?")  # the mouse stays where it is
    page.keyboard.press("Enter")
    settled(page)
    assert re.fullmatch(r"block 4, 3: [\d.]+ %", readout.text_content()) and readout.text_content() != before
    page.set_input_files("#file", photo)
    expect(page.locator("#status")).to_have_text("Uploaded: ask about it.")
    expect(readout).to_have_text("")
    page.mouse.move(pointed[0] + 3, pointed[1])
    expect(readout).to_have_text(re.compile(r"block \d, \d$"))  # nothing is known of it yet
    page.locator("button.tile").nth(1).evaluate("e => e.click()")
    expect(readout).to_have_text("")


@pytest.mark.parametrize("width", [1280, 800, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(page, width, scheme):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    document = page.locator("html")
    assert document.evaluate("e => e.scrollWidth") <= width
    paper, ink = (page.locator("body").evaluate(f"e => getComputedStyle(e).{name}") for name in
                  ("backgroundColor", "color"))  # fmt: skip
    light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink))
    assert (light > dark + 400) if scheme == "light" else (dark > light + 400)
    for id in ("stage", "question", "ask", "method", "layer", "follow", "file"):
        box = page.locator(f"#{id}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, id
