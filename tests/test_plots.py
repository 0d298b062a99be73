"""Plots as lines of text and as files, and the words and cosines that they and the page show: by hand."""

import json
import math
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from conftest import DEPTH, PROMPTS, WIDTH
from test_cli import MILD, as_json, fitted, fitted_once, ok, run  # noqa: F401 (fixtures)

from dct.cli.characters import encodable
from dct.errors import DctError, UsageError
from dct.naming import telling_words
from dct.plots import figures, files, text
from dct.plots.charts import Axis
from dct.resemblance import resemblance

CURVE = [(0.1, 0.2), (2.0, 0.5), (10.0, 1.4)]
RANKING = {
    "arms": [
        {
            "arm": "found",
            "vector": "7",
            "interval": [0.5, 0.9],
            "test": {"right": 3, "asked": 4},
            "damage": {"kl": 0.25},
        },
        {
            "arm": "random",
            "vector": "random 2",
            "interval": [0.0, 0.4],
            "test": {"right": 0, "asked": 4},
            "damage": None,
        },
    ],
    "unsteered": {"right": 1, "asked": 4},
}


# --- as text ----------------------------------------------------------------------------------------------------------


def test_points_of_a_curve_stand_where_they_belong():
    x, y = Axis("scale", 0.1, 10.0, log=True), Axis("ratio", 0.0, 1.4)
    lines = text.curve(CURVE, x, y, upright=2.0, level=0.7)
    assert len(lines) == text.HEIGHT + 2 <= 10
    inside = [line.split("│", 1)[1] if "┤" not in line else line.split("┤")[1] for line in lines[1:-1]]
    dots = {(row, column) for row, line in enumerate(inside) for column, c in enumerate(line) if c == text.POINT}
    last = text.HEIGHT - 1, text.WIDTH - 1
    assert dots == {(round(last[0] * (1 - b / 1.4)), round(last[1] * (math.log10(a) + 1) / 2)) for a, b in CURVE}
    assert inside[0][round(last[1] * (math.log10(2) + 1) / 2)] == text.RULE
    assert inside[3][0] == text.LEVEL
    assert lines[1].startswith("1.4")
    assert lines[-1].split() == ["0.1", "scale", "10"]
    plain = [encodable(line, "ascii") for line in lines]
    assert all(line.isascii() and len(line) == len(was) for line, was in zip(plain, lines, strict=True))


def test_arms_are_lines_as_long_as_their_intervals():
    lines = text.spans(figures.arm_rows(RANKING))
    assert [line.split("│")[0].strip() for line in lines] == [
        "vector 7: 3 of 4, damage 0.250",
        "best random (random 2): 0 of 4",
        "unsteered: 1 of 4",
    ]
    best = lines[0].split("│")[1]
    assert (best.index("─"), best.rindex("─"), best.index(text.POINT)) == (16, 29, 24)  # of 32
    assert [line.split()[-1] for line in lines] == ["75%", "0%", "25%"]


# --- as files ---------------------------------------------------------------------------------------------------------


def test_a_picture_has_its_points_and_both_schemes():
    drawn = files.picture([figures.calibration(CURVE, 1.0, 0.5), figures.arms(RANKING)])
    root = ElementTree.fromstring(drawn)
    assert "prefers-color-scheme: dark" in drawn
    panels = [child for child in root if child.tag.endswith("svg")]
    assert [float(panel.get("y")) for panel in panels] == [files.HEAD, 200 + 2 * files.HEAD]
    dots = [float(one.get("cx")) for one in panels[0] if one.tag.endswith("circle")]
    share = (math.log10(2) + 1) / 2  # of the way from 0.1 to 10 on a logarithmic axis
    assert dots[1] == pytest.approx(dots[0] + share * (dots[2] - dots[0]), abs=0.1)
    said = [one.text for one in panels[0] if one.get("class") == "note"]
    assert said == ["R = 1", "lambda = 0.5"]
    spans = [one for one in panels[1] if "span" in one.get("class", "")]
    widths = [float(one.get("x2")) - float(one.get("x1")) for one in spans]
    assert widths[0] == pytest.approx(widths[1], abs=0.2)  # 0.4 both
    assert widths[2] == 0


def test_what_no_plot_can_go_to_is_refused_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"`plot` is an \.svg or a \.png"):
        files.check(Path("a.pdf"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DctError, match=r"pip install 'deep-causal-transcoders\[bench\]'"):
        files.check(tmp_path / "a.png")
    assert "--plot is an .svg" in run("calibrate", "--plot", "a.pdf").stderr


def test_png_is_the_same_plot(tmp_path):
    pytest.importorskip("matplotlib")
    path = files.write(tmp_path / "a.png", [figures.calibration(CURVE, 1.0, 0.5), figures.arms(RANKING)])
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    from matplotlib.image import imread

    seen = imread(path)
    assert seen.shape[:2] == (int((200 + files.HEAD) * 2 * 2.5), 900)
    assert len({tuple(p) for p in seen.reshape(-1, seen.shape[2])[::7].tolist()}) > 5  # something is drawn


def test_commands_draw_into_files_and_leave_pipes_alone(fitted, model_folder):  # noqa: F811
    told = run("calibrate", "--model", model_folder, "--n", 2, "--plot", "curve.svg")
    assert told.exit_code == 0, told.output
    assert "figure in curve.svg" in told.output
    assert text.POINT not in told.output  # no terminal
    assert "Where is R?" in Path("curve.svg").read_text()
    ok("fit", "--model", model_folder, "--factors", 4, "--iterations", 2, "--scale", 1, "--plot", "fit.svg")
    assert "change of V" in Path("fit.svg").read_text()
    content = as_json("rank", fitted, "--screen-only", "--n", 2, *MILD, "--plot", "rank.svg")
    dots = [one for one in ElementTree.parse("rank.svg").iter() if one.get("data-vector")]
    assert len(dots) == len(content["vectors"])
    alike = content["resembles"]
    assert alike["layers"] == list(range(DEPTH))
    assert set(alike["stream"]) == {one["vector"] for one in content["vectors"]}
    page = Path(as_json("report", fitted)["page"]).read_text()
    assert "Which layers&#39; streams?" in page
    ranking = json.loads((fitted / "rank.json").read_text())
    ranking["resembles"]["layers"] = "no"
    (fitted / "rank.json").write_text(json.dumps(ranking))
    assert "not ranked yet" in Path(as_json("report", fitted)["page"]).read_text()
    shutil.rmtree("runs")


# --- what they show ---------------------------------------------------------------------------------------------------


def test_resemblance_is_the_cosine_with_the_model_s_own_states(make_lm):
    lm = make_lm("llama")
    asked, mild = lm.encode(PROMPTS[:2]), lm.encode(PROMPTS[2:])
    found = resemblance(lm, torch.eye(WIDTH)[:5], asked, mild, source=1)

    def means(rows):
        states = [lm.model(torch.tensor([row]), output_hidden_states=True).hidden_states for row in rows]
        return torch.stack([torch.stack([h[k][0, -1] for h in states]).mean(0) for k in range(DEPTH)]).detach()

    away, towards = means(asked), means(mild)
    assert found.layers == list(range(DEPTH))
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(found.stream, unit(away, dim=1).T[:5])
    # Behind this template prompts end alike, so that layer 0 tells them apart by all their tokens instead.
    torch.testing.assert_close(found.difference[:, 1:], unit(towards - away, dim=1).T[:5, 1:], rtol=1e-4, atol=1e-5)
    assert found.chance_stream.min() > 0
    assert resemblance(lm, torch.eye(WIDTH)[:5], asked, [], source=1).difference is None


def test_telling_words_are_those_of_one_vector_alone():
    asked = ["How do I bake bread?", "Tell me of the sea", "What now"]
    alone = ["Sorry, no bread today", "Sorry, no", "Sorry, no"]
    said = [
        ["Arr matey, no bread", "Arr the sea, matey", "Sorry, no"],
        ["Sorry, no", "Sorry, what fog", "The fog, no"],
        ["Sorry, no", "Sorry, no", "Sorry, no"],
    ]
    words = telling_words(said, alone, asked)
    assert words[0] == ("Arr", "matey")  # "sea" and "bread" are the prompts', "no" is everybody's
    assert words[1][0] == "fog"
    assert not words[2]  # the unsteered model says as much
