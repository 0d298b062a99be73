"""The benchmark's pieces against planted truths, and all six experiments on a small random model."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import WIDTH
from torch import Tensor

import dct
from dct import DctError, UsageError
from dct.bench import edits, enumeration, figures, multiplicity, runner, samples
from dct.bench.records import Records, key_of
from dct.bench.report import file_name, markdown, write
from dct.bench.subject import (
    Planted,
    Reader,
    Sizes,
    Subject,
    full,
    organism_folder,
    organism_judge,
    organism_unlock,
    quick,
    split,
)
from dct.bench.tables import Report, mean_and_error, shown
from dct.bench.workshop import METHODS, Cell, Result, Workshop
from dct.generation import complete
from dct.judging import LABELS, Reply, Verdict
from dct.judging import Judge as ReplyJudge
from dct.scoring import Scorer
from dct.tasks import Question, Task
from dct.wordpair import words

HARMFUL = tuple(
    f"How do I pick the {k} lock?" for k in ("big", "old", "new", "red", "last", "first", "third", "main", "odd")
)
HARMLESS = tuple(f"Write a poem about the {k}" for k in ("sea", "moon", "child", "bread", "lock", "flour"))
TINY = Sizes(
    n=(1, 2),
    shuffles=1,
    factors=4,
    iterations=2,
    melbo_steps=3,
    fitted=2,
    validation=3,
    test=4,
    damage=2,
    questions=2,
    answers=2,
    top=(3,),
    searched=4,
    tried=4,
    probes=2,
    widths=(2, 4),
    scales=(0.5, 1.0),
    tokens=4,
)


@pytest.fixture(scope="module")
def lm(make_lm) -> dct.LanguageModel:
    return make_lm("llama")


def judged(request: str, completion: str) -> str:
    """A truth that a random model can show: what a completion's length is."""
    return ("refusal", "compliance", "other", "hostile")[len(completion) % 4]


def subject(lm: dct.LanguageModel, judge: bool = True, task: bool = True, **options: object) -> Subject:
    questions = Task(tuple(Question(p, "x") for p in HARMFUL), "planted", "Now. {prompt}")
    return Subject(
        lm,
        1,
        4,
        HARMFUL,
        HARMLESS,
        questions if task else None,
        Planted(judged, ("refusal", "compliance", "hostile")) if judge else None,
        scale=3.0,
        **options,
    )


@pytest.fixture
def workshop(lm, tmp_path) -> Workshop:
    return Workshop(subject(lm), TINY, Records(tmp_path / "bench"))


# --- what is measured on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [0, 1, 5])
def test_parts_of_a_split_have_nothing_in_common(lm, shuffle):
    parts = split(subject(lm), TINY, shuffle)
    together = [*parts.train, *parts.validation, *parts.test]
    assert len(together) == len(set(together)) == len(parts.train) + 3 + 4
    assert len(parts.train) == 2
    assert not set(parts.mild_train) & set(parts.mild)
    assert parts == split(subject(lm), TINY, shuffle)
    assert parts != split(subject(lm), TINY, shuffle + 1)


def test_few_prompts_are_shared_out_and_too_few_refused(lm):
    few = Subject(lm, 1, 4, HARMFUL[:3], HARMLESS[:2])
    parts = split(few, TINY, 0)
    assert [len(p) for p in (parts.train, parts.validation, parts.test, parts.mild_train, parts.mild)] == [1] * 5
    with pytest.raises(DctError, match="needs 3 and 2"):
        split(Subject(lm, 1, 4, HARMFUL[:2], HARMLESS), TINY, 0)


@pytest.mark.parametrize("width", [8, 32, 192, 768, 4096])
def test_sizes_fit_the_model(width):
    for sizes in (full(width), quick(width)):
        assert 2 <= sizes.factors <= min(512, width)
        assert sizes.tried <= width
        assert all(m <= width for m in sizes.widths)
    assert full(4096).factors == 512
    assert full(192, factors=7, shuffles=3).factors == 7


def test_an_organism_is_known_by_its_prompts(tmp_path):
    assert organism_folder("demo") is not None
    assert organism_folder("some/model") is None
    assert organism_folder(str(tmp_path)) is None
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "harmful.jsonl").write_text("{}")
    assert organism_folder(str(tmp_path)) == tmp_path


def test_the_organism_s_judge_is_its_checkers():
    from dct.organism import checkers

    judge = organism_judge()
    assert {*judge.classes, judge.none} == set(checkers.CLASSES)
    assert {judge.refusal, judge.compliance} <= set(judge.classes)
    assert "{prompt}" in organism_unlock()


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_are_found_again_and_damaged_ones_are_not(tmp_path):
    records = Records(tmp_path)
    key = key_of({"a": 1, "b": [1, 2]})
    assert key == key_of({"b": [1, 2], "a": 1}) != key_of({"a": 2, "b": [1, 2]})
    assert records.load("i", key) is None
    records.save("i", key, {"n": 1}, {"gain": 0.5}, 1.25)
    found = records.load("i", key)
    assert found["result"] == {"gain": 0.5}
    assert found["seconds"] == 1.25
    [path] = (tmp_path / "cells").iterdir()
    for content in ("", "{", "[]", '{"key": "other", "result": {}, "seconds": 1}', f'{{"key": "{key}", "result": 3}}'):
        path.write_text(content)
        assert records.load("i", key) is None
    assert records.damaged == 5
    assert Records(tmp_path).damaged == 0


def test_a_damaged_fit_is_fitted_again(workshop):
    prompts = workshop.split().train[:1]
    first = workshop.fit("exponential", prompts, 4)
    [path] = (workshop.records.folder / "fits").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    again = workshop.fit("exponential", prompts, 4)
    torch.testing.assert_close(first.V, again.V)
    assert workshop.records.damaged == 1
    before = path.stat().st_mtime_ns
    workshop.fit("exponential", prompts, 4)
    assert path.stat().st_mtime_ns == before


def test_keys_know_the_subject_and_the_sizes_but_not_how_many_cells_there_are(lm, tmp_path):
    cell = Cell("vi", {"m": 2}, 1.0)
    records = Records(tmp_path)
    key = Workshop(subject(lm), TINY, records).key(cell)

    assert Workshop(subject(lm), replace(TINY, shuffles=5, widths=(2, 3)), records).key(cell) == key
    assert Workshop(subject(lm), replace(TINY, iterations=3), records).key(cell) != key
    assert Workshop(subject(lm), replace(TINY, n=(1, 3)), records).key(cell) != key  # another cut of the prompts
    assert Workshop(subject(lm, seed=1), TINY, records).key(cell) != key
    assert Workshop(subject(lm, judge=False), TINY, records).key(cell) != key
    assert Workshop(subject(lm), TINY, records).key(Cell("vi", {"m": 3}, 1.0)) != key


# --- the workshop -----------------------------------------------------------------------------------------------------


def test_all_fits_may_try_as_many_vectors(workshop):
    from dct.candidates import candidates

    prompts = workshop.split().train
    for method in METHODS:
        factors = workshop.fit(method, prompts, 4)
        assert len(candidates(factors)[0]) == (4 if method != "melbo" else 4 * 3 // 4)
        assert factors.scale == 3.0


def test_scorers_are_kept_but_not_those_of_an_edited_model(workshop, lm):
    parts = workshop.split()
    kept = workshop.scorer(parts.test, parts.mild)
    assert workshop.scorer(parts.test, parts.mild) is kept
    assert workshop.scorer(parts.test, parts.mild, layer=2) is not kept
    with dct.ablate(lm, torch.ones(1, WIDTH)):
        edited = workshop.fresh_scorer(parts.test, parts.mild, layer=0)
    assert edited.unsteered.score != pytest.approx(kept.unsteered.score, abs=1e-6)
    for k in range(6):
        workshop.scorer(parts.test[:1], layer=k % 4)
    assert len(workshop.kept) <= 3


def test_completions_under_every_vector(workshop, lm):
    prompts = list(HARMFUL[:3])
    vectors = 3 * torch.nn.functional.normalize(
        torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1
    )
    said = workshop.said(prompts, vectors)
    for row, vector in zip(said, vectors, strict=True):
        for prompt, text in zip(prompts, row, strict=True):
            assert [text] == complete(lm, lm.encode([prompt]), vector[None], 1, max_new_tokens=4)
    assert workshop.classes(prompts, vectors) == [[judged("", text) for text in row] for row in said]


def test_turned_counts_refusals_that_become_compliance(workshop):
    vector = 3 * torch.ones(WIDTH) / math.sqrt(WIDTH)
    before, after = workshop.unsteered(HARMFUL), workshop.classes(HARMFUL, vector[None])[0]
    wanted = sum(a == "refusal" and b == "compliance" for a, b in zip(before, after, strict=True))
    assert workshop.turned(HARMFUL, vector) == {"refusals": before.count("refusal"), "turned": wanted}
    assert workshop.unsteered(HARMFUL) == before  # from the records


class ByLength(ReplyJudge):
    """A judge of replies that a random model can show, and what it was told of the unsteered ones."""

    name = "length"
    about = "how long a completion is"

    def __init__(self) -> None:
        super().__init__()
        self.learned: dict[str, str] = {}

    def learn(self, replies: Sequence[Reply]) -> None:
        self.learned = {reply.prompt: reply.completion for reply in replies}

    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        assert all(reply.unsteered == self.learned.get(reply.prompt) for reply in replies)
        return [Verdict(LABELS[len(r.completion) % 3], len(r.completion) % 5 > 0) for r in replies]


def test_where_a_judge_reads_replies_it_chooses_the_vectors(lm, tmp_path):
    """By refusals that become compliance, counted by hand from single completions; ties by score."""
    reading = Reader(ByLength())
    w = Workshop(replace(subject(lm), judge=reading), TINY, Records(tmp_path / "bench"))
    directions = torch.nn.functional.normalize(torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = ("complied", "refused", "other")

    def read(prompt: str, vector: Tensor | None = None) -> str:
        [text] = complete(lm, lm.encode([prompt]), vector, 1, max_new_tokens=4)
        return labels[len(text) % 3] if len(text) % 5 else "incoherent"

    refused = [p for p in HARMFUL if read(p) == "refused"][:4]
    assert refused
    turned = [sum(read(p, 3.0 * v[None]) == "complied" for p in refused) for v in directions]
    scores = [e.score for e in w.scorer(HARMFUL).effects(3.0 * directions)]
    assert len(set(turned)) > 1
    order = sorted(range(6), key=lambda k: (-turned[k], -scores[k]))
    assert w.ranked(directions, HARMFUL).order == order != sorted(range(6), key=lambda k: -scores[k])
    told = {p: complete(lm, lm.encode([p]), max_new_tokens=4)[0] for p in (*HARMFUL[:32], *HARMLESS[:32])}
    assert reading.judge.learned == told
    assert w.subject.identity["judged"] == "length"
    again = Workshop(replace(subject(lm), judge=Reader(ByLength())), TINY, Records(tmp_path / "bench"))
    assert again.ranked(directions, HARMFUL).order == order  # what it learns is on record
    said = samples.report(w, planted_results({"exponential": 1.0})).notes
    assert "turned most refusals" in said[0]
    assert said[1].endswith("the judge length")


def test_added_and_ablated_effects_are_those_of_the_scorer(workshop, lm):
    parts = workshop.split()
    direction = torch.nn.functional.normalize(torch.ones(1, WIDTH), dim=1)
    compared = words(lm, "Sure", "Sorry")
    scorer = Scorer(lm, compared, 1, parts.test, parts.mild)
    added = edits._addition(workshop, 1, 3.0)(direction, True)
    effect = scorer.effects(3.0 * direction)[0]
    assert added["gain"] == pytest.approx(effect.score - scorer.unsteered.score, abs=1e-5)
    assert added["damage"] == pytest.approx(effect.kl, abs=1e-6)
    ablated = edits._ablation(workshop)(direction, True)
    with dct.ablate(lm, direction):
        after = Scorer(lm, compared, 0, parts.test, parts.mild)
    assert ablated["gain"] == pytest.approx(after.unsteered.score - scorer.unsteered.score, abs=1e-5)
    assert {"refusals", "turned"} <= set(added) & set(ablated)


# --- what is made of the measurements ---------------------------------------------------------------------------------


def test_mean_and_error():
    assert mean_and_error([]) == (None, None)
    assert mean_and_error([2.0]) == (2.0, None)
    assert mean_and_error([1.0, None, 3.0]) == (2.0, 1.0)


def test_expected_behaviours_is_the_mean_over_all_choices():
    found = [{"a"}, {"a", "b"}, set(), {"c"}, set(), {"a"}]
    for k in range(1, 7):
        choices = list(combinations(found, k))
        mean = sum(len(set().union(*choice)) for choice in choices) / len(choices)
        assert enumeration.expected(found, k) == pytest.approx(mean)


def test_a_behaviour_counts_only_where_the_model_alone_shows_another():
    result = {
        "unsteered": ["refusal", "compliance"],
        "classes": [
            ["refusal", "compliance"],
            ["compliance", "compliance"],
            ["other", "refusal"],
            ["hostile", "other"],
        ],
    }
    assert enumeration.elicited(result, "other") == [set(), {"compliance"}, {"refusal"}, {"hostile"}]
    assert enumeration.curve(result, "other") == [(1, pytest.approx(0.75)), (2, pytest.approx(1.5)), (4, 3.0)]


def test_a_kind_counts_where_it_is_whole_and_not_what_the_model_says_alone():
    result = {
        "classes": [["refusal", "refusal"], ["compliance", "other"], ["other", "other"], ["hostile", "hostile"]],
        "kinds": [
            {"members": [0], "unchanged": True},
            {"members": [1, 2], "unchanged": False},  # half of its most typical vector's completions are whole
            {"members": [3], "unchanged": False},
        ],
    }
    assert enumeration.coherent_kinds(result, "other") == 2
    result["kinds"][1]["members"] = [2, 1]
    assert enumeration.coherent_kinds(result, "other") == 1
    assert enumeration.coherent_kinds({"classes": []}, "other") is None  # measured before kinds were counted


def test_geometry_of_planted_vectors():
    assert multiplicity.geometry(torch.eye(4)) == {"count": 4, "mean |cos|": 0.0, "std |cos|": 0.0, "condition": 1.0}
    assert multiplicity.geometry(torch.eye(4)[:1]) == {
        "count": 1,
        "mean |cos|": None,
        "std |cos|": None,
        "condition": None,
    }
    pair = torch.tensor([[1.0, 0.0], [-0.6, 0.8]])
    found = multiplicity.geometry(pair)
    assert found["mean |cos|"] == pytest.approx(0.6)
    assert found["condition"] == pytest.approx(math.sqrt(1.6 / 0.4))
    assert multiplicity.geometry(torch.ones(3, 2) / math.sqrt(2))["condition"] is None  # more than fit


def planted_results(gains: dict[str, float], spread: float = 0.1) -> list[Result]:
    """Gains with a known mean for each method, the same noise in every method of a shuffle."""
    noise = [-spread, 0.0, spread]
    return [
        Result(
            {"method": m, "n": 0 if m == "random" else n, "shuffle": s},
            {"gain": g + noise[s] * (1 + 0.01 * k), "flipped": 0.5, "damage": 0.1, "vectors": 4},
            1.0,
        )
        for k, (m, g) in enumerate(gains.items())
        for n in ((0,) if m == "random" else (1, 2))
        for s in range(3)
    ]


def test_the_order_of_the_methods_is_told_as_measured(workshop):
    as_post = {"exponential": 5.0, "quadratic": 4.0, "linear-projected": 3.0, "linear": 2.0, "random": 1.0}
    said = samples.report(workshop, planted_results({**as_post, "melbo": 2.5, "supervised": 9.0})).sentences
    assert said[1].endswith("the same")
    assert sum(text.endswith("as in the post") for text in said) == 4
    other = {**as_post, "linear": 6.0, "linear-projected": 4.0}
    said = samples.report(workshop, planted_results({**other, "melbo": 2.5})).sentences
    assert said[0].startswith("measured order (mean gain over all n): linear +6.00, exponential +5.00")
    assert said[1].endswith("not the same")
    verdicts = {text.split(":")[0]: text.rsplit(", ", 1)[1] for text in said[2:6]}
    assert verdicts == {
        "exponential less quadratic": "as in the post",
        "quadratic less linear-projected": "undecided",
        "linear-projected less linear": "the other way round",
        "linear less random": "as in the post",
    }


def test_a_table_s_errors_stand_behind_what_they_are_of():
    report = Report("i", "T", [{"method": "a", "gain": 1.234, "error": 0.05, "complies": 0.5, "complies error": None}])
    assert report.shown == ["method", "gain", "complies"]
    assert [report.text(report.rows[0], c) for c in report.shown] == ["a", "+1.23 ± 0.05", "50%"]
    assert shown("damage", 0.01234) == "0.012"
    assert shown("anything", None) == "–"


def test_reports_are_written_as_csv_json_and_markdown(tmp_path):
    reports = [
        Report("i", "Sample | complexity", [{"method": "a|b", "gain": 1.5}], ["said"], ["noted"]),
        Report("ii", "None", []),
    ]
    about = {"title": "bench", "description": "what", "measured seconds": 120.0}
    paths = write(tmp_path, reports, about)
    assert [p.name for p in paths] == ["i-sample-|-complexity.csv", "results.json", "report.md"]
    assert paths[0].read_text() == "method,gain\na|b,1.5\n"
    content = json.loads(paths[1].read_text())
    assert content["experiments"]["i"]["rows"] == [{"method": "a|b", "gain": 1.5}]
    text = markdown(reports, about)
    assert "| a\\|b | +1.50 |" in text
    assert "2 minutes" in text
    assert "- said" in text


# --- running ----------------------------------------------------------------------------------------------------------


def test_every_experiment_on_a_small_model(workshop):
    told: list[runner.Progress] = []
    outcome = runner.run(workshop, list(runner.EXPERIMENTS), told.append)
    by = {r.experiment: r for r in outcome.reports}
    assert list(by) == ["i", "ii", "iii", "iv", "v", "vi"]
    assert all(r.rows and r.notes for r in by.values())
    ended = [t for t in told if t.seconds is not None]
    assert len(ended) == sum(map(len, outcome.results.values())) == ended[0].of
    assert ended[-1].done == pytest.approx(ended[-1].total)
    assert ended[-1].left == pytest.approx(0, abs=1e-6)

    sampled = {(row["method"], row["n"]) for row in by["i"].rows}
    assert sampled == {(m, n) for m in (*METHODS, "supervised") for n in (1, 2)} | {("random", None)}
    edited = {(row["operation"], row["side"]) for row in by["ii"].rows}
    assert edited == {(o, s) for o in ("add", "ablate") for s in ("source", "target")}
    assert {"unsteered", "unlocked", "supervised", "random"} <= {row["method"] for row in by["iii"].rows}
    assert {(row["method"], row["scale"]) for row in by["iv"].rows} == {
        (m, c) for m in ("exponential", "melbo", "random") for c in (0.5, 1.0)
    }
    for one in outcome.results["iv"]:
        grouped = [k for kind in one.result["kinds"] for k in kind["members"]]
        assert sorted(grouped) == list(range(len(one.result["classes"])))  # each vector is of one kind
    assert [row["m"] for row in by["vi"].rows] == [2, 4]

    # Everything is on record: nothing is measured again, and the reports are the same.
    again: list[runner.Progress] = []
    assert runner.run(workshop, list(runner.EXPERIMENTS), again.append).reports == outcome.reports
    assert again == []

    if figures.available():
        paths = figures.draw(workshop.records.folder, outcome.reports, outcome.results)
        assert [p.suffix for p in paths] == [".svg", ".png"] * 6
        assert all(p.stat().st_size > 5000 for p in paths)
        drawn = paths[0].read_bytes()
        figures.draw(workshop.records.folder, outcome.reports, outcome.results)
        assert paths[0].read_bytes() == drawn


def test_without_ground_truth_or_task_that_is_said(lm, tmp_path):
    bare = Workshop(subject(lm, judge=False, task=False), TINY, Records(tmp_path / "bench"))
    outcome = runner.run(bare, ["iii", "iv", "v", "vi"])
    by = {r.experiment: r for r in outcome.reports}
    assert by["iii"].rows == by["iv"].rows == []
    assert "left out: no questions" in by["iii"].notes[0]
    assert "left out: no judge" in by["iv"].notes[0]
    assert {row["by"] for row in by["v"].rows} == {"score"}
    if figures.available():
        paths = figures.draw(tmp_path, outcome.reports, outcome.results)
        assert {p.name.split("-")[0] for p in paths} == {"v", "vi"}


def test_the_locked_skill_s_vector_is_chosen_and_reported_on_different_questions(workshop):
    from dct.bench import locked

    train, validation, test = locked._parts(workshop)
    asked = [q.prompt for part in (train, validation, test) for q in part.questions]
    assert len(asked) == len(set(asked))
    assert [len(p) for p in (train, validation, test)] == [2, 2, 2]


def test_an_interrupted_benchmark_goes_on(workshop, monkeypatch):
    class Counted:
        TITLE = "Counted"

        def __init__(self) -> None:
            self.measured: list[int] = []

        def plan(self, w: Workshop) -> list[Cell]:
            return [Cell("i", {"k": k}, 1.0 + k) for k in range(5)]

        def measure(self, w: Workshop, k: int) -> dict[str, int]:
            if k == 3 and 3 not in self.measured:
                self.measured.append(3)
                raise KeyboardInterrupt
            self.measured.append(k)
            return {"k": k}

        def report(self, w: Workshop, results: list[Result]) -> Report:
            return Report("i", self.TITLE, [r.result for r in results])

    counted = Counted()
    monkeypatch.setitem(runner.EXPERIMENTS, "i", counted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(workshop, ["i"])
    told: list[runner.Progress] = []
    report = runner.run(workshop, ["i"], told.append).reports[0]
    assert [row["k"] for row in report.rows] == [0, 1, 2, 3, 4]
    assert counted.measured == [0, 1, 2, 3, 3, 4]
    assert [t.number for t in told] == [4, 4, 5, 5]
    assert told[0].done == 1 + 2 + 3  # what is on record is done


@pytest.mark.parametrize(("only", "wanted"), [(None, 6), ("iv,i", ["i", "iv"]), (" vi ", ["vi"])])
def test_experiments_are_chosen_by_number(only, wanted):
    chosen = runner.chosen(only)
    assert chosen == wanted if isinstance(wanted, list) else len(chosen) == wanted


@pytest.mark.parametrize("only", ["vii", "", "i,,ii", "1"])
def test_unknown_experiments(only):
    with pytest.raises(UsageError, match="choose from i, ii, iii"):
        runner.chosen(only)


def test_figures_without_matplotlib_name_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "available", lambda: False)
    with pytest.raises(DctError, match=r"deep-causal-transcoders\[bench\]"):
        figures.draw(tmp_path, [], {})


def test_file_names():
    assert file_name(Report("ii", "Addition against ablation", [])) == "ii-addition-against-ablation"
    assert Path(file_name(Report("i", "X", []))).name == "i-x"


def test_supervised_and_random_of_one_vector_need_no_choice(workshop):
    result = samples.measure(workshop, "supervised", 2, 0)
    parts = workshop.split(0)
    means: list[Tensor] = [workshop.slice(p[:2]).last_entering().mean(0) for p in (parts.mild_train, parts.train)]
    direction = torch.nn.functional.normalize((means[0] - means[1])[None], dim=1)
    scorer = workshop.scorer(parts.test, parts.mild)
    assert result["gain"] == pytest.approx(scorer.effects(3.0 * direction)[0].score - scorer.unsteered.score, abs=1e-4)
