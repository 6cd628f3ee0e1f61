"""The page in headless Chromium: no errors, no requests, steps, and the numbers of the data."""

import json
import re

import pytest
from support.browser import Browser, find_browser
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

from msrnn.reductions.registry import parse_reduction
from msrnn.watch.document import build_document
from msrnn.watch.page import render_page
from msrnn.watch.read import read_document
from msrnn.watch.run import observe_run

PROMPT = 'the boat </script> was "small" & the sea was <b>not</b>'
CELL, TOKENIZER = chat_cell(), tiny_tokenizer()
IDS = TOKENIZER.encode(PROMPT).ids
SPECS = ("h2o:6", "window:5", "full", "tova:6")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the path of a page, with its data in a file of the same folder."""
    runs = [observe_run(CELL, IDS, parse_reduction(spec), 12) for spec in SPECS]
    document = build_document(runs, TOKENIZER, "tiny", len(IDS), CELL.config.n_heads)
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render_page(document))
    path.with_suffix(".json").write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if not (executable := find_browser()):
        pytest.skip("no Chromium is found; set MSRNN_CHROMIUM")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium, page):
    chromium.resize(1280, 900)
    chromium.call("Page.navigate", url="about:blank")
    chromium.events.clear()
    chromium.open(page)
    yield chromium
    failures = [e for e in chromium.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    failures += [e for e in chromium.events if e["method"] == "Runtime.consoleAPICalled"]
    assert not failures
    urls = [e["params"]["request"]["url"] for e in chromium.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith((page.as_uri(), "data:"))] == []
    assert page.as_uri() in [url.partition("#")[0] for url in urls]


def show(browser, **place):
    browser.value(f"show({json.dumps(place)})")


def shown_step(browser):
    return int(re.match(r"step (\d+) of", browser.value('document.getElementById("count").textContent'))[1])


def rows(browser, view):
    """Return position, token, score, weight and whether it is evicted, of each row of a table."""
    return browser.value(f"""[...document.querySelectorAll(".run")[{view}].querySelectorAll(".rows tbody tr")].map((row) =>
        [Number(row.dataset.position), ...[...row.children].map((cell) => cell.textContent), row.className === "out"])""")


def number(text):
    return {"protected": float("inf"), "–": None}.get(text, float(text.replace("−", "-")) if text[0] in "−0123456789" else None)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("operators", [(0, 1), (2, 3)])
def test_the_numbers_are_those_of_the_data(browser, page, layer, head, operators):
    document, runs = read_document(page.with_suffix(".json"))
    browser.value(f"views.forEach((view, i) => setRun(view, {list(operators)}[i])); compare()")
    for t in (0, 3, 7, 20, len(IDS), len(runs[0].ids) - 1):
        show(browser, t=t, layer=layer, head=head)
        for view, index in enumerate(operators):
            run = runs[index]
            planes = run.planes[layer]
            plane, text = planes[min(head, len(planes) - 1)], browser.value(f"views[{view}].now.textContent")
            step, found = min(t, len(run.ids) - 1), rows(browser, view)
            assert sorted(row[0] for row in found) == plane.visible[step].nonzero()[0].tolist()
            assert [row[0] for row in found if row[-1]] == [p for p in [plane.evicted[step]] if p >= 0]
            for p, position, token, score, weight, out in found:
                assert position == str(p)
                assert token.startswith(document["texts"][str(run.ids[p])].strip())
                assert (number(weight) or 0) == pytest.approx(plane.weights[step, p], rel=0.06)
                if plane.scores is None:
                    assert score == "–"
                else:
                    assert number(score) == pytest.approx(plane.scores[step, p], rel=0.06, abs=1e-9)
                assert out == (p == plane.evicted[step])
            if t < len(run.ids) and plane.evicted[step] >= 0:
                n = sum(len(planes) for planes in run.planes[:layer]) + (head if len(planes) > 1 else 0)
                exact = float(run.arrays["evicted_score"][n, step])
                assert number(re.search(r"Its score (\S+) is the lowest", text)[1]) == pytest.approx(exact, rel=5e-3)
                assert f"token {plane.evicted[step]}," in text or plane.evicted[step] == step
            predicted = browser.value(f"""[...views[{view}].predictions.children].map((row) =>
                Number(row.children[1].textContent))""")
            assert predicted[:8] == pytest.approx(run.arrays["top_probabilities"][step].tolist(), rel=6e-3)


def test_keys_and_controls_change_the_step(browser):
    last = browser.value("steps - 1")
    before = rows(browser, 0)
    for key, shift, expected in [
        ("ArrowRight", 0, 1),
        ("ArrowRight", 8, 11),
        ("ArrowLeft", 0, 10),
        ("End", 0, last),
        ("ArrowRight", 0, last),
        ("Home", 0, 0),
        ("ArrowLeft", 0, 0),
        ("ArrowRight", 8, 10),
    ]:
        browser.press(key, shift)
        assert shown_step(browser) == expected
    assert rows(browser, 0) != before
    for name, expected in [("next", 11), ("back", 10)]:
        browser.value(f'document.getElementById("{name}").click()')
        assert shown_step(browser) == expected
    browser.value('(() => { const x = document.getElementById("step"); x.value = 17; x.dispatchEvent(new Event("input")); })()')
    assert shown_step(browser) == 17
    browser.value("views[0].tokens[4].click()")
    assert shown_step(browser) == 4


def test_play_steps_until_it_is_paused(browser):
    browser.press(" ")
    browser.wait_for("shown.t >= 2")
    assert browser.value('document.getElementById("play").textContent') == "Pause"
    browser.press(" ")
    step = shown_step(browser)
    assert browser.value("new Promise((done) => setTimeout(() => done(shown.t), 900))") == step
    assert browser.value('document.getElementById("announcement").textContent').startswith("h2o:6: Token ")


def test_a_layer_and_a_head_are_selected(browser):
    browser.press("ArrowRight", 8)
    before = rows(browser, 0)
    browser.press("]")
    assert browser.value('document.getElementById("layer").value') == "1"
    assert rows(browser, 0) != before
    browser.press("[")
    assert rows(browser, 0) == before
    change = '(() => { const x = document.getElementById("head"); x.value = "1"; x.dispatchEvent(new Event("change")); })()'
    browser.value(change)
    assert rows(browser, 0) != before
    assert "head 1" in browser.value("views[0].caption.textContent")


def test_two_operators_and_the_place_where_they_differ(browser, page):
    document, runs = read_document(page.with_suffix(".json"))
    browser.value("setRun(views[0], 2); setRun(views[1], 1); compare(); draw()")
    position, step = document["texts_differ"][2][1], document["predictions_differ"][2][1]
    text = browser.value('document.getElementById("divergence").textContent')
    assert f"texts differ from token {position} on" in text
    assert f"at step {step}," in text
    browser.press("d")
    assert shown_step(browser) == position - 1
    browser.value('document.getElementById("predictions-differ").click()')
    assert shown_step(browser) == step
    tops = browser.value('[...document.querySelectorAll(".predictions tbody tr:first-child th")].map((x) => x.firstChild.data)')
    assert tops[0] != tops[1]
    assert tops == [document["texts"][str(runs[i].arrays["top_ids"][step][0])].strip() for i in (2, 1)]


def test_the_page_says_what_it_shows(browser, page):
    runs = read_document(page.with_suffix(".json"))[1]
    added = max(len(run.ids) for run in runs) - len(IDS)
    expected = f"tiny: 2 layers, {len(IDS)} prompt tokens, up to {added} generated greedily by each operator."
    assert browser.value('document.getElementById("about").textContent') == expected
    assert "at most 2.2 %" in browser.value('document.getElementById("precision").textContent')


def test_tokens_are_shown_as_text(browser):
    assert browser.value("views[0].text.textContent").startswith(f"<s>{PROMPT}")
    assert browser.value('document.querySelectorAll("#runs b").length') == 0


def test_a_screen_reader_finds_names_and_hears_each_step(browser):
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    for role in ("button", "combobox", "slider", "table", "image", "status"):
        assert role in {found for found, _ in roles}, role
    nameless = [role for role, name in roles if role in ("button", "combobox", "slider", "image", "region") and not name]
    assert not nameless
    assert browser.value('document.querySelectorAll("table th:not([scope])").length') == 0
    heard = browser.value('document.getElementById("announcement").textContent')
    browser.press("ArrowRight")
    assert browser.value('document.getElementById("announcement").textContent') != heard
    assert browser.value('document.getElementById("step").getAttribute("aria-valuetext")').startswith("step 1 of ")


@pytest.mark.parametrize("width", [320, 390, 800])
def test_a_narrow_window_needs_no_horizontal_scrolling(browser, width):
    browser.resize(width, 844)
    show(browser, t=20)
    assert browser.value("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("fragment", ["step=9&layer=1", "step=x&layer=-4", "step=99999&layer=99999&head=7"])
def test_the_address_selects_the_step(browser, page, fragment):
    browser.call("Page.navigate", url="about:blank")
    browser.open(page, fragment)
    last = browser.value("steps - 1")
    assert shown_step(browser) == {"9": 9, "x": 0, "99999": last}[fragment.partition("=")[2].partition("&")[0]]
