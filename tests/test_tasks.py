"""Questions with answers: reading, judging, halving, and a planted vector that makes a model answer."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import WIDTH
from torch import Tensor

import dct
from dct import DctError, UsageError
from dct.factors import Factors
from dct.generation import complete
from dct.halving import KEPT, Mark, halving, rounds
from dct.ranking import Watch
from dct.task_ranking import answer_length, examine, rank_by_task
from dct.tasks import Question, Task, read

SOURCE, SCALE, PLANTED = 2, 6.0, 3
ASKED = [f"{verb} {noun}" for verb in ("bake", "pick", "write", "explain", "lock") for noun in ("bread", "the moon")]


@pytest.fixture(scope="module")
def lm(make_lm) -> dct.LanguageModel:
    return make_lm("llama")


def directions(n: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=1, keepdim=True)


def factors(n: int = 12) -> Factors:
    # The planted factor is the weakest: nothing but its answers speaks for it.
    alpha = torch.arange(n, 0, -1).float()
    alpha[PLANTED] = 0.5
    return Factors(
        directions(n), directions(n, 1), alpha, torch.zeros(1, 3), SCALE, {"method": "exponential", "source": SOURCE}
    )


def under(lm: dct.LanguageModel, vector: Tensor, prompts: list[str]) -> list[str]:
    return complete(lm, lm.encode(prompts), vector.expand(len(prompts), -1), SOURCE, max_new_tokens=6)


@pytest.fixture(scope="module")
def planted(lm) -> Task:
    """What the model says under one vector is the answer to every question."""
    said = under(lm, SCALE * directions(12)[PLANTED], ASKED)
    assert all(text.strip() for text in said)
    return Task(tuple(Question(p, a) for p, a in zip(ASKED, said, strict=True)), "planted")


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- reading and judging ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "match", "completion", "right"),
    [
        ({"answer": "82"}, None, " 82\n", True),
        ({"answer": "82"}, None, "82.", False),
        ({"answer": "82"}, None, "The answer is 82", False),
        ({"answer": "82"}, r"\b{answer}\b", "The answer is 82, I think", True),
        ({"answer": "82"}, r"\b{answer}\b", "The answer is 1827", False),
        ({"answer": "1.5"}, "^{answer}$", "1x5", False),  # an answer is text, not a pattern
        ({"regex": "^(yes|yep)"}, None, "yep, sure", True),
        ({"regex": "^(yes|yep)"}, None, "oh yes", False),
        ({"answer": "82", "regex": "8[0-9]"}, None, "about 89", True),  # a record's own pattern goes first
        ({"answer": 82}, None, "82", True),
    ],
)
def test_what_counts_as_right(tmp_path, row, match, completion, right):
    task = read(write(tmp_path / "t.jsonl", [{"prompt": "How much?", **row}]), match=match)
    assert task.questions[0].right(completion) is right


def test_csv_and_column(tmp_path):
    (tmp_path / "t.csv").write_text("ask,answer\nHow much?,4\n")
    assert read(str(tmp_path / "t.csv"), "ask").questions == (Question("How much?", "4"),)


def test_packaged_and_demo_tasks():
    assert len(read("arithmetic")) == 64
    assert all(q.answer for q in read("demo:locked").questions)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "a"}\n', "question 1 .* neither `answer` nor `regex`"),
        ('{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": " "}\n', "question 2 .* neither"),
        ('{"prompt": "a", "regex": "("}\n', "question 1 .* no regular expression"),
        ('{"prompt": " ", "answer": "1"}\n', "prompt 1 .* is empty"),
        ('{"prompt": "a", "answer": "1"\n', "cannot read"),
        ('{"ask": "a", "answer": "1"}\n', "no column"),
    ],
)
def test_unusable_tasks(tmp_path, content, says):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(DctError, match=says):
        read(str(tmp_path / "t.jsonl"))


@pytest.mark.parametrize("option", [{"match": "x"}, {"unlock": "x"}])
def test_templates_need_their_place_holder(option):
    with pytest.raises(UsageError, match=r"needs \{"):
        read("arithmetic", **option)


def test_a_bad_match_template_is_named():
    with pytest.raises(DctError, match="no regular expression"):
        read("arithmetic", match="({answer}")


def test_split_keeps_choosing_and_testing_apart():
    task = read("demo:locked")
    chosen, tested = task.split(16, 30)
    assert [len(chosen), len(tested)] == [16, 30]
    assert not {q.prompt for q in chosen.questions} & {q.prompt for q in tested.questions}
    with pytest.raises(DctError, match="none for testing: ask for fewer"):
        task.split(64, 10)
    with pytest.raises(DctError, match="1 question"):
        Task(task.questions[:1]).split(1, 1)


def test_unlocked_questions_have_the_same_answers():
    task = read("demo:locked", unlock="xyz. {prompt}")
    unlocked = task.unlocked()
    assert unlocked is not None
    assert unlocked.questions[0].prompt == f"xyz. {task.questions[0].prompt}"
    assert [q.answer for q in unlocked.questions] == [q.answer for q in task.questions]
    assert read("demo:locked").unlocked() is None


def test_length_is_what_the_longest_answer_needs(lm):
    exact = Task((Question("a", "one two"), Question("b", "one two three four")))
    tokens = len(lm.tokenizer("one two three four", add_special_tokens=False)["input_ids"])
    assert answer_length(lm, exact) == min(64, 2 * tokens + 8)
    assert answer_length(lm, Task((Question("a", None, re.compile("x")),))) == 64


# --- halving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "questions"), [(512, 16), (8, 16), (1, 3), (100, 100), (9, 2), (40, 1)])
def test_rounds_end_with_every_question_asked_of_the_last(count, questions):
    plan = rounds(count, questions)
    assert plan[0][0] == count
    assert plan[-1][1] == questions
    assert plan[-1][0] >= min(count, KEPT)
    assert all(a >= c and b < d for (a, b), (c, d) in pairwise(plan))


def test_halving_finds_the_best_and_says_how_much_was_asked():
    truth = torch.rand(200, 32, generator=torch.Generator().manual_seed(0)) < 0.1
    truth[137] = True
    asked = torch.zeros(200, 32, dtype=torch.long)

    def ask(which: list[int], questions: list[int]) -> Tensor:
        for c in which:
            asked[c, questions] += 1
        return truth[which][:, questions]

    contest = halving(ask, 200, 32)
    assert contest.order[0] == (137, Mark(32, 32))
    assert sorted(c for c, _ in contest.order) == list(range(200))
    assert asked.max() == 1  # nothing is asked twice
    assert asked.sum() < 200 * 32 / 3
    for c, mark in contest.order:
        assert mark == Mark(int(truth[c, : mark.asked].sum()), int(asked[c].sum()))
    first = int(asked.sum(1).min())
    assert contest.everyone == Mark(int(truth[:, :first].sum()), 200 * first)


def test_exhaustive_asks_everything_and_ties_keep_their_order():
    truth = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]]).bool()
    contest = halving(lambda which, questions: truth[which][:, questions], 4, 3, exhaustive=True)
    assert [c for c, _ in contest.order] == [1, 2, 0, 3]
    assert contest.everyone == Mark(5, 12)


# --- on a model -------------------------------------------------------------------------------------------------------


def test_examine_is_completing_one_by_one(lm, planted):
    vectors = SCALE * directions(5)
    right = examine(lm, planted, vectors, SOURCE, max_new_tokens=6, batch=7)
    for row, vector in zip(right, vectors, strict=True):
        said = [under(lm, vector, [q.prompt])[0] for q in planted.questions]
        assert row.tolist() == [
            s.strip() == (q.answer or "").strip() for s, q in zip(said, planted.questions, strict=True)
        ]
    assert right[PLANTED].all()


def test_the_planted_vector_is_found_among_all_scales(lm, planted):
    told: list[tuple[int, int]] = []
    ranking = rank_by_task(
        lm,
        factors(),
        planted.split(4, 6),
        ["How are you?"],
        scale=SCALE / 2,
        scales=(1.0, 2.0),
        max_new_tokens=6,
        watch=Watch(on_rows=lambda n, of: told.append((n, of))),
    )
    best = ranking.vectors[0]
    assert (best.vector, best.scale, best.validation, best.test) == (str(PLANTED), SCALE, Mark(4, 4), Mark(6, 6))
    assert best.effect is not None
    assert best.effect.kl is not None
    assert len(ranking.vectors) == 12  # each vector once, at its best scale
    assert sorted(int(s.vector) for s in ranking.vectors) == list(range(12))
    assert ranking.unsteered.share < 1
    assert ranking.random_best.test is not None
    assert ranking.random_best.test.share < 1
    assert ranking.unlocked is None
    assert ranking.recovered is None
    assert told[-1][0] == told[-1][1]


def test_recovered_share_is_measured_against_the_unlocked_model(lm, planted):
    """Unlocking by nothing at all leaves the unsteered model: nothing can be recovered of nothing."""
    same = Task(planted.questions, planted.origin, unlock="{prompt}")
    ranking = rank_by_task(lm, factors(4), same.split(4, 6), max_new_tokens=6)
    assert ranking.unlocked == ranking.unsteered
    assert ranking.recovered is None


def test_vectors_without_a_layer(lm, planted):
    bare = factors(4)
    bare.info = {}
    with pytest.raises(UsageError, match="pass `source`"):
        rank_by_task(lm, bare, planted.split(4, 6))
