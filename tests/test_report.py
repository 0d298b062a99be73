"""The page of a run: what stands on it against the files it is made from, hostile text, and a real browser."""

import json
import math
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from test_cli import MILD, as_json, fitted, fitted_once, ok, run  # noqa: F401 (fixtures)

from dct.factors import Factors
from dct.plots.charts import Axis, Plot, curve, histogram
from dct.report.facts import gathered
from dct.runs import find_run

SMALL = ["--n", 3, "--test", 4, "--keep", 2, "--scales", "0.5,1", "--max-new-tokens", 4, *MILD]
JUDGE = ["--judge", "regex", "--judge-option", r"complied=[aeiou]\W*$"]
HOSTILE = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }}<!--\u2028& \"'"


class Page(HTMLParser):
    """Tags, text and the data of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.data: dict = {}
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = "data" if dict(attrs).get("id") == "data" else tag

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "data":
            self.data = json.loads(data)
        elif self._in not in ("script", "style"):
            self.texts.append(data.strip())


def page(*words: object) -> Page:
    return Page(Path(as_json("report", *words)["page"]).read_text())


@pytest.fixture(scope="module")
def ranked_once(fitted_once, tmp_path_factory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("ranked")
    shutil.copytree(fitted_once, folder / "runs")
    (folder / "mild.txt").write_text("Write a poem\nHow are you?\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ok("rank", *SMALL, *JUDGE)
    return folder / "runs"


@pytest.fixture
def ranked(ranked_once, workplace) -> tuple[Path, dict]:
    """A fresh folder with a run in it whose vectors were judged; gives the run's folder and its ranking."""
    shutil.copytree(ranked_once, workplace / "runs")
    [folder] = Path("runs").iterdir()
    return folder, json.loads((folder / "rank.json").read_text())


# --- what stands on it ------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_files(ranked):
    folder, content = ranked
    found = page()
    best = content["vectors"][0]
    right, of = (content["arms"][0]["test"][k] for k in ("right", "asked"))
    said = " ".join(" ".join(found.texts).split())
    assert f"Under vector {best['vector']} the model complies with {right} of {of} unseen requests" in said
    for arm in content["arms"]:
        assert f"{arm['test']['right']} of {arm['test']['asked']}" in said
        assert f"{arm['damage']['kl']:.3f}" in said
    vectors = {one["vector"]: one for one in found.data["vectors"]}
    assert list(vectors) == [one["vector"] for one in content["vectors"]]
    rows = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    for one in content["vectors"]:
        mine = vectors[one["vector"]]
        assert (mine["score"], mine["damage"]) == (one["effect"]["score"], one["effect"]["kl"])
        assert mine["validation"] == one["validation"]
        texts = {(row["prompt"], row["completion"]) for row in rows if row["vector"] == one["vector"]}
        shown = {(reply["prompt"], said["text"]) for reply in mine["replies"] for said in reply["said"]}
        assert shown
        assert shown <= texts
        assert sum(mine["labels"].values()) == sum(row["vector"] == one["vector"] for row in rows)
    unsteered = {row["prompt"]: row["completion"] for row in rows if row["vector"] == "unsteered"}
    assert found.data["unsteered"] == unsteered


def test_names_and_kinds_are_those_of_the_ranking(ranked):
    kinds = ranked[1]["kinds"]
    vectors = {one["vector"]: one for one in page().data["vectors"]}
    for name, words in kinds["names"].items():
        assert {key: vectors[name][key] for key in ("more", "less", "causes")} == words
    for k, kind in enumerate(kinds["kinds"]):
        assert all(vectors[name]["kind"] == k for name in kind["vectors"])


def test_nearest_are_the_largest_cosines(ranked):
    factors = Factors.load(ranked[0] / "factors.safetensors")
    for one in page().data["vectors"]:
        k = int(one["vector"])
        cosines = (factors.V @ factors.V[k]).tolist()
        cosines[k] = 0.0
        for name, cosine in one["nearest"]:
            assert cosine == pytest.approx(cosines[int(name)], abs=1e-5)
        least = min(abs(c) for _, c in one["nearest"])
        assert sum(abs(c) > least + 1e-6 for c in cosines) < len(one["nearest"])


def test_it_is_one_file_that_asks_for_nothing(ranked):
    found = page()
    text = (ranked[0] / "report.html").read_text()
    for _, attributes in found.tags:
        assert not {"src", "srcset"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
    assert "default-src 'none'" in text
    for word in ("http://", "https://", "@import", "url("):
        assert word not in text


def test_no_page_tells_where_things_lie(ranked, model_folder):
    assert str(model_folder) not in Path(as_json("report", ranked[0].resolve())["page"]).read_text()
    assert model_folder.name in page().texts  # without the folders above it


def test_pages_of_runs_that_were_not_judged(fitted):  # noqa: F811
    (fitted / "rank.json").unlink(missing_ok=True)
    assert "not ranked yet" in " ".join(page().texts)
    ok("rank", "--screen-only", "--n", 2, *MILD)
    found = page()
    assert "ranked by score" in " ".join(found.texts)
    assert all(one["score"] is not None and not one["replies"] for one in found.data["vectors"])
    (fitted / "rank.json").write_text('{"vectors": [{"vector": 3}]}')
    assert "not ranked yet" in " ".join(page().texts)


def test_where_it_goes_and_what_is_said(fitted, tmp_path):  # noqa: F811
    said = ok("report", fitted, "--out", tmp_path / "a.html")
    assert (tmp_path / "a.html").stat().st_size > 5000
    assert "saved" in said.stdout
    assert run("report", tmp_path / "nothing").exit_code == 1
    assert run("report", fitted, "--out", tmp_path).exit_code == 1


# --- what a model wrote is text ---------------------------------------------------------------------------------------


@pytest.fixture
def hostile(ranked) -> Path:
    folder, _ = ranked
    rows = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    for row in rows:
        row["completion"], row["prompt"] = HOSTILE + row["completion"], HOSTILE + row["prompt"]
    lines = [json.dumps(row) for row in rows] + ["nonsense", '{"vector": 3}', "[]"]
    (folder / "completions.jsonl").write_text("\n".join(lines))
    ranking = json.loads((folder / "rank.json").read_text())
    ranking["kinds"]["prompts"] = [HOSTILE, HOSTILE]
    for sample in ranking["kinds"]["samples"]:
        sample["completions"] = [HOSTILE, HOSTILE]
    for words in ranking["kinds"]["names"].values():
        words["more"] = [HOSTILE]
    (folder / "rank.json").write_text(json.dumps(ranking))
    return folder


def test_hostile_text_stays_text(hostile):
    found = page()
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert sum(tag == "script" for tag, _ in found.tags) == 2
    shown = [said["text"] for one in found.data["vectors"] for reply in one["replies"] for said in reply["said"]]
    assert shown
    assert all(text.startswith(HOSTILE) for text in shown)
    assert "{{ 7 * 7 }}" in (hostile / "report.html").read_text()


CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_searches_sorts_and_opens(hostile, scheme, width):
    api = pytest.importorskip("playwright.sync_api")
    as_json("report")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
        wrong: list[str] = []
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
        tab.goto(f"file://{(hostile / 'report.html').resolve()}")
        everyone = tab.locator("#list details").count()
        assert tab.inner_text("#shown") == f"{everyone} of {everyone}"
        tab.fill("#search", "vector 7")
        assert [row.get_attribute("id") for row in tab.locator("#list details").all()] == ["vector-7"]
        tab.fill("#search", "onerror")
        assert tab.locator("#list details").count() > 0
        tab.fill("#search", "nowhere to be found")
        assert tab.locator("#list details").count() == 0
        tab.fill("#search", "")
        tab.select_option("#sort", "score")
        data = json.loads(tab.inner_text("#data") or tab.evaluate("document.getElementById('data').textContent"))
        best = max(data["vectors"], key=lambda one: one["score"])
        first = tab.locator("#list details").first
        assert first.get_attribute("id") == f"vector-{best['vector']}"
        first.locator("summary").focus()
        tab.keyboard.press("Enter")  # opened by keyboard
        first.locator(".pairs").first.wait_for()
        assert HOSTILE.split("\u2028")[0][:20] in first.inner_text()
        assert tab.locator("#list img").count() == 0
        first.locator("[data-vector]").first.click()
        tab.wait_for_function("document.querySelectorAll('details[open]').length === 2")
        tab.keyboard.press("Escape")
        tab.locator("body").press("/")
        assert tab.evaluate("document.activeElement.id") == "search"
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert wrong == []
        browser.close()


# --- plots ------------------------------------------------------------------------------------------------------------


def test_places_on_axes():
    linear, log = Axis("x", 0.0, 10.0), Axis("x", 0.01, 100.0, log=True)
    assert [linear.at(v) for v in (-1, 0, 5, 10, 99)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert log.at(1.0) == pytest.approx(0.5)
    assert linear.ticks == [0, 2, 4, 6, 8, 10]
    assert log.ticks == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert Axis.over([3.0, math.nan, 5.0], "x").low == pytest.approx(2.88)
    assert [Axis("x", 0, 1, share=True).text(0.5), linear.text(2.5e6), linear.text(25000)] == ["50%", "2.5M", "25k"]
    assert Axis.over([], "x", log=True).at(0.5) >= 0
    assert Axis.over([2.0, 2.0], "x").ticks


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [1e-9, 1e9], [-5.0, 5.0], torch.rand(50).tolist()])
def test_plots_are_drawn_inside_their_frame(values):
    points = list(enumerate(values))
    x, y = Axis("n", 0, max(1, len(values) - 1)), Axis.over(values, "y <&>")
    for text in (
        curve(points, x, y, "says", (0.5, "R & co")),
        histogram([("a", values), ("random", values)], "v", "says"),
    ):
        for shape in ElementTree.fromstring(text.svg()).iter():
            for name in ("cx", "x", "x1", "x2"):
                assert 0 <= float(shape.get(name, 0)) <= 360
            for name in ("cy", "y", "y1", "y2"):
                assert 0 <= float(shape.get(name, 0)) <= 200


def test_a_histogram_counts():
    text = histogram([("a", [0.0, 0.0, 1.0, 1.0])], "v", "says", bins=2).svg()
    bars = [one for one in ElementTree.fromstring(text) if "bar" in one.get("class", "")]
    assert [float(bar.get("height")) for bar in bars] == pytest.approx([150 / 1.06] * 2, abs=0.2)


def test_points_carry_their_names():
    plot = Plot(Axis("x", 0, 1), Axis("y", 0, 1), "says")
    plot.dots([(0.5, 0.5)], "vector", ["17: <b>"])
    [dot] = [one for one in ElementTree.fromstring(plot.svg()) if one.tag == "circle"]
    assert dot.get("data-vector") == "17"
    assert dot[0].text == "17: <b>"
    assert (float(dot.get("cx")), float(dot.get("cy"))) == plot.place(0.5, 0.5)


def test_facts_need_no_ranking_and_no_completions(ranked):
    folder = ranked[0]
    (folder / "completions.jsonl").unlink()
    (folder / "rank.json").unlink()
    facts = gathered(find_run(folder), Factors.load(folder / "factors.safetensors"))
    assert facts.ranking is None
    assert not facts.judged
    assert len(facts.vectors) == len(facts.alpha)
    assert all(one["replies"] == [] for one in facts.vectors)
