"""The experiment on a small model with a planted vector: what is chosen, on which prompts, beside what."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import DEPTH, WIDTH
from test_ranking import SOURCE, last_logits, log_p, tokens
from torch import Tensor

import dct
from dct import DctError
from dct import replies as making
from dct.arms import ARMS, Screen, noise
from dct.candidates import Aim
from dct.damage import preferred
from dct.factors import Factors
from dct.generation import complete
from dct.halving import Contest, Mark
from dct.journal import Journal
from dct.judging import Judge, Reply, Verdict, mcnemar, standard_error, wilson
from dct.logits import next_logs, own_difference
from dct.pool import divided
from dct.ranking import Watch
from dct.replies import Push, Replies
from dct.scoring import Effect, Scorer
from dct.selection import select
from dct.supervised import entering, lengths, spread, supervised
from dct.wordpair import words

SCALE, PLANTED, LENGTH = 6.0, 3, 6
ASKED = [
    f"{verb} {noun}"
    for verb in ("bake", "pick", "write", "explain", "lock")
    for noun in ("bread", "the moon", "a poem")
]
MILD = ["What is two plus two?", "How are you?", "Tell me a story"]
FEW = {"n": 5, "test": 6, "keep": 3, "max_new_tokens": LENGTH, "scales": (1.0, 1.5), "positive": "T", "negative": "H"}


@pytest.fixture(scope="module")
def lm(make_lm) -> dct.LanguageModel:
    return make_lm("llama")


def directions(n: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=1, keepdim=True)


def factors(n: int = 6) -> Factors:
    info = {"method": "exponential", "source": SOURCE}
    return Factors(directions(n), directions(n, 1), torch.ones(n), torch.zeros(1, 3), SCALE, info)


class Planted(Judge):
    """A reply complies if it is what the model says under one vector; unsteered ones are refusals, others neither."""

    name = "planted"
    about = "one vector's replies"

    def __init__(self, lm: dct.LanguageModel) -> None:
        super().__init__()
        prompts = [*ASKED, *MILD]
        vector = (SCALE * directions(6)[PLANTED]).expand(len(prompts), -1)
        self.wanted = dict(
            zip(prompts, complete(lm, lm.encode(prompts), vector, SOURCE, max_new_tokens=LENGTH), strict=True)
        )

    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        return [Verdict(self.label(reply), True) for reply in replies]

    def label(self, reply: Reply) -> str:
        if reply.completion == self.wanted[reply.prompt]:
            return "complied"
        return "refused" if reply.completion == reply.unsteered else "other"


@pytest.fixture(scope="module")
def judge(lm) -> Planted:
    return Planted(lm)


@pytest.fixture(scope="module")
def screened(lm) -> list[str]:
    """The factors by the score of their texts at R, computed by hand."""
    asked = ASKED[:4]
    scores = {
        str(k): float((log_p(lm, asked, "T", SCALE * v) - log_p(lm, asked, "H", SCALE * v)).mean())
        for k, v in enumerate(directions(6))
    }
    return sorted(scores, key=lambda name: -scores[name])


@pytest.fixture(scope="module")
def pair(screened) -> dict[str, str]:
    """Texts under which the planted vector is among the worse half: it gets in because it is heard."""
    if screened.index(str(PLANTED)) >= 3:
        return {"positive": "T", "negative": "H"}
    return {"positive": "H", "negative": "T"}


@pytest.fixture(scope="module")
def run(lm, judge, pair, tmp_path_factory) -> tuple[dct.Selection, Path]:
    path = tmp_path_factory.mktemp("run") / "completions.jsonl"
    return select(lm, factors(), ASKED, MILD, judge=judge, journal=Journal(path), **{**FEW, **pair}), path


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- what comes of it -------------------------------------------------------------------------------------------------


def test_the_planted_vector_is_chosen_at_its_scale_and_reported_on_the_test_prompts(run):
    found = run[0].found
    assert (found.arm, found.vector, found.layer, found.scale) == ("found", str(PLANTED), SOURCE, SCALE)
    assert (found.validation.right, found.validation.asked) == (5, 5)
    assert (found.test.right, found.test.asked) == (6, 6)
    assert found.interval == wilson(6, 6)
    assert found.chance is None
    assert run[0].unsteered.right == 0


def test_every_arm_is_there_with_as_many_tries(run):
    selection, path = run
    assert [arm.arm for arm in selection.arms] == list(ARMS)
    assert selection.tries == 6
    tried: dict[str, set[tuple[str, float]]] = {arm: set() for arm in ARMS}
    for row in (row for row in records(path) if row["prompt"] == ASKED[4]):  # behind the prompts that all are heard on
        kind = {"random": "random", "layer": "supervised", "noise": "noise", "unsteered": ""}.get(
            row["vector"].split()[0], "found"
        )
        if kind:
            tried[kind].add((row["vector"], round(row["scale"], 6)))
    assert {arm: len(pushes) for arm, pushes in tried.items()} == dict.fromkeys(ARMS, 6)


def test_baselines_are_held_against_the_found_one_on_the_same_prompts(run, lm, judge):
    """McNemar's p by counting all ways in which the prompts that differ could have fallen."""
    for arm in run[0].arms[1:]:
        ahead, behind = run[0].found.test.right - arm.test.right, 0  # the found one has them all
        ways = list(itertools.product((0, 1), repeat=ahead + behind))
        extreme = [w for w in ways if min(sum(w), len(w) - sum(w)) <= min(ahead, behind)]
        assert arm.chance == pytest.approx(len(extreme) / len(ways))


def test_prompts_never_overlap_and_those_of_the_test_are_seen_last(run):
    selection, path = run
    validation, test = selection.pool.validation, selection.pool.test
    assert (validation, test) == (tuple(ASKED[:5]), tuple(ASKED[5:11]))
    assert not set(validation) & set(test)
    rows = [row for row in records(path) if row["vector"] != "unsteered"]
    places = {
        name: [k for k, row in enumerate(rows) if row["prompt"] in texts] for name, texts in
        (("validation", validation), ("test", test), ("mild", MILD))
    }  # fmt: skip
    assert max(places["validation"]) < min(places["test"])
    steered = {(row["vector"], row["scale"]) for row in rows if row["prompt"] in test}
    assert steered == {(arm.vector, arm.scale) for arm in selection.arms}  # the chosen ones alone


def test_everyone_is_heard_on_the_prompts_that_a_contest_begins_with(run, lm):
    """All six vectors, as many random ones and a direction for each layer, before anyone is asked more; at the longer
    scale too, since fewer than three succeed at the shorter."""
    _, path = run
    rows = [row for row in records(path) if row["vector"] != "unsteered"]
    at = {(row["vector"], row["prompt"]): k for k, row in enumerate(rows) if row["scale"] == SCALE}
    for k in range(6):
        for name in (str(k), f"random {k}"):
            assert all((name, prompt) in at for prompt in ASKED[:2])
    layers = {row["vector"] for row in rows if row["vector"].startswith("layer")}
    assert layers == {f"layer {k}" for k in range(DEPTH)}
    longer = {(row["vector"], row["prompt"]) for row in rows if row["scale"] == 1.5 * SCALE}
    assert {(str(k), prompt) for k in range(6) for prompt in ASKED[:2]} <= longer
    heard = [k for (name, prompt), k in at.items() if name in "012345" and prompt in ASKED[:2]]
    assert len(heard) == 12
    assert max(heard) < min(k for k, row in enumerate(rows) if row["prompt"] == ASKED[2])


def test_where_enough_succeed_nobody_is_heard_at_longer_scales(lm, judge, pair, tmp_path):
    path = tmp_path / "completions.jsonl"
    few = {**FEW, **pair, "keep": 1}
    found = select(lm, factors(), ASKED, MILD, judge=judge, journal=Journal(path), **few).found
    assert (found.vector, found.scale) == (str(PLANTED), SCALE)
    longer = {row["vector"] for row in records(path) if row["scale"] == 1.5 * SCALE and row["vector"] in "012345"}
    assert longer == {str(PLANTED)}  # in the contest


def test_all_vectors_are_listed_once_the_best_heard_first(run, lm, screened, pair, judge):
    """Those that competed first, then by successes when they were heard, then by the score: all counted by hand."""
    selection = run[0]
    names = [one.vector for one in selection.vectors]
    assert sorted(names) == sorted(screened)
    assert names[0] == str(PLANTED)
    assert selection.vectors[0].test == selection.found.test
    rows = lm.encode(ASKED[:2])
    right = {}
    for name in screened:
        theta = (SCALE * directions(6)[int(name)]).expand(2, -1)
        said = complete(lm, rows, theta, SOURCE, max_new_tokens=LENGTH)
        right[name] = sum(text == judge.wanted[prompt] for text, prompt in zip(said, ASKED[:2], strict=True))
    scored = screened if pair["positive"] == "T" else screened[::-1]
    order = sorted(scored, key=lambda name: (-right[name], scored.index(name)))
    assert set(names[:3]) == set(order[:3])
    assert names[3:] == order[3:]
    for one in selection.vectors:
        competed = one.vector in names[:3]
        assert one.scale in ((6.0, 9.0) if competed else (6.0,))
        assert competed or (one.validation.right, one.validation.asked) == (right[one.vector], 2)
        theta = one.scale * directions(6)[int(one.vector)]
        sides = [log_p(lm, ASKED[:4], pair[side], theta) for side in ("positive", "negative")]
        assert one.effect.score == pytest.approx(float((sides[0] - sides[1]).mean()), abs=1e-3)


def test_damage_is_divergence_and_spoiled_replies(run, lm):
    """KL by forward passes with a hook; for the replies the refusal judge, whatever the experiment's own says."""
    found = run[0].found
    assert found.damage is not None
    theta = found.scale * directions(6)[PLANTED]
    p, q = (torch.softmax(last_logits(lm, tokens(lm, MILD), t), dim=-1) for t in (None, theta))
    kl = float((p * (p / q).log()).sum(1).mean())
    assert found.damage.kl == pytest.approx(kl, rel=1e-3)
    assert run[0].vectors[0].effect.kl == pytest.approx(kl, rel=1e-3)
    said = {m: [complete(lm, lm.encode([m]), v, SOURCE, max_new_tokens=LENGTH)[0] for v in (None, theta[None])]
            for m in MILD}  # fmt: skip
    read = dct.judging.judge("refusal", lm)
    own = {**run[0].pool.unsteered, **{m: texts[0] for m, texts in said.items()}}
    read.learn([Reply(prompt, text, text) for prompt, text in own.items()])
    fit = {m: [v.coherent and v.label != "refused" for v in (read.verdict(m, t, texts[0]) for t in texts)]
           for m, texts in said.items()}  # fmt: skip
    assert found.damage.of == sum(before for before, _ in fit.values())
    assert found.damage.spoiled == sum(before and not after for before, after in fit.values())


def test_the_judge_reads_no_harmless_replies_and_openings_are_the_model_s_own(lm, judge, monkeypatch):
    """A judge of answers knows no harmless prompts; refusals are told by another. A random model has no openings."""
    own = judge.label

    def strict(reply: Reply) -> str:
        assert reply.prompt in ASKED
        return own(reply)

    monkeypatch.setattr(judge, "label", strict)
    notes: list[str] = []
    few = {**FEW, "positive": None, "negative": None, "keep": 1, "scales": (1.0,)}
    found = select(lm, factors(2), ASKED, MILD, judge=judge, watch=Watch(on_note=notes.append), **few)
    assert notes[0] == found.pool.told
    assert notes[0] == "unsteered, the model refuses 15 of 15 prompts: 5 to choose by, 6 to report on"
    assert notes[1] == found.words.notes[0]
    assert "of pairs" in notes[1]


def test_costs_are_told_before_each_part_and_every_reply_is_counted(lm, judge, pair):
    costs: list[object] = []
    told: list[tuple[int, int]] = []
    stages: list[str] = []
    few = {**FEW, **pair, "keep": 1, "scales": (1.0,)}
    watch = Watch(lambda done, of: told.append((done, of)), costs.append, stages.append)
    select(lm, factors(2), ASKED, MILD, judge=judge, watch=watch, **few)
    assert len(costs) == 2
    assert all(cost.seconds > 0 for cost in costs)
    assert stages[0] == "unsteered"
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert all(done <= of for done, of in told)
    # 15 prompts and 3 harmless ones unsteered; two vectors, two random ones and every layer heard on 2 prompts; of four
    # arms one try on 5 and on 6 prompts, 6 unsteered again, and whatever harmless replies are fit to be spoiled
    least = 15 + 3 + 2 * (2 + 2 + DEPTH) + 4 * (5 + 6) + 6
    assert least <= told[-1][0] <= least + 4 * 3


def test_without_harmless_prompts_there_is_no_supervised_arm_and_no_damage(lm, judge, pair):
    found = select(lm, factors(), ASKED, judge=judge, **{**FEW, **pair})
    assert [arm.arm for arm in found.arms] == ["found", "random", "noise"]
    assert all(arm.damage is None for arm in found.arms)
    assert found.vectors[0].effect.kl is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"by": "alpha"}, "leave `by` and `max_damage` out"),
        ({"max_damage": 1.0}, "leave `by` and `max_damage` out"),
        ({"positive": "T", "negative": "T"}, "no token tells"),
        ({"scales": (0.0,)}, "positive multiples"),
        ({"scales": ()}, "positive multiples"),
        ({"wanted": "pleased"}, "unknown `wanted`"),
        ({"luck": 1}, "unknown argument 'luck'"),
    ],
)
def test_what_cannot_be_is_refused_before_a_reply_is_made(lm, judge, monkeypatch, change, says):
    monkeypatch.setattr(making, "complete", lambda *_, **__: pytest.fail("a reply was made"))
    with pytest.raises(DctError, match=says):
        select(lm, factors(), ASKED, MILD, judge=judge, **{**FEW, **change})


# --- going on ---------------------------------------------------------------------------------------------------------


def test_an_experiment_that_was_cut_goes_on_and_makes_no_reply_twice(run, lm, judge, pair, tmp_path, monkeypatch):
    whole, path = run
    lines = path.read_bytes().splitlines(keepends=True)
    keys = [json.loads(line)["key"] for line in lines]
    assert len(set(keys)) == len(keys)
    half = len(lines) // 2
    cut = tmp_path / "completions.jsonl"
    cut.write_bytes(b"".join(lines[:half]) + lines[half][:40])  # killed in the middle of a line
    made: list[int] = []

    def count(lm, prompts, *rest, **more):
        made.append(len(prompts))
        return complete(lm, prompts, *rest, **more)

    monkeypatch.setattr(making, "complete", count)
    again = select(lm, factors(), ASKED, MILD, judge=judge, journal=Journal(cut), **{**FEW, **pair})
    assert asdict(again) == asdict(whole)
    assert sum(made) == len(lines) - half
    assert sorted(json.loads(line)["key"] for line in cut.read_text().splitlines()) == sorted(keys)
    made.clear()
    select(lm, factors(), ASKED, MILD, judge=judge, journal=Journal(cut), **{**FEW, **pair})
    assert made == []


def test_a_reply_is_known_by_all_that_decides_it(lm, make_lm, tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    push = Push(1, directions(1)[0], "0", 1.0)
    first = Replies(lm, 4, journal=journal)
    asked = [(push, "bake bread"), (None, "bake bread"), (push, "pick a lock")]
    first.said(asked)
    known = Journal(tmp_path / "j.jsonl")
    assert len(known.known) == 3
    assert Replies(lm, 4, journal=known).missing(asked) == 0
    others = [
        Replies(lm, 5, journal=known).missing(asked),
        Replies(lm, 4, system="Be brief.", journal=known).missing(asked),
        Replies(make_lm("llama", seed=1), 4, journal=known).missing(asked),
    ]
    assert others == [3, 3, 3]
    fresh = Replies(lm, 4, journal=known)
    assert fresh.missing([(Push(2, push.added), "bake bread"), (Push(1, 2 * push.added), "bake bread")]) == 2
    assert fresh.missing([(Push(1, push.added.clone(), "another name", 7.0), "bake bread")]) == 0


def test_lines_that_are_no_records_are_not_there(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"key": "a", "completion": "x"}\nnonsense\n[1]\n{"key": 1, "completion": "y"}\n{"key": "b"')
    journal = Journal(path)
    assert journal.known == {"a": "x"}
    journal.add([{"key": "c", "completion": "z\u2028\n"}])
    assert Journal(path).known == {"a": "x", "c": "z\u2028\n"}
    assert path.read_text().count("\n") == 5


def test_a_journal_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DctError, match=r"cannot write .*copy the run to another folder"):
        Journal(tmp_path / "file" / "j.jsonl").add([{"key": "a", "completion": "x"}])


# --- replies ----------------------------------------------------------------------------------------------------------


def test_replies_are_those_of_completing_one_by_one_whatever_the_batch(lm):
    pushes = [None, *(Push(layer, SCALE * v) for layer in (1, 3) for v in directions(2))]
    asked = [(push, prompt) for push in pushes for prompt in ASKED[:4]]
    told: list[int] = []
    got = Replies(lm, LENGTH, batch=3, on_rows=told.append).said([*asked, *asked[:2]])
    assert sum(told) == len(asked) + 2
    for text, (push, prompt) in zip(got, [*asked, *asked[:2]], strict=True):
        vector = None if push is None else push.added[None]
        assert text == complete(lm, lm.encode([prompt]), vector, push.layer if push else 0, max_new_tokens=LENGTH)[0]


def greedy(lm: dct.LanguageModel, ids: list[int], table: Tensor, layer: int) -> list[int]:
    """Token by token without a cache, a row of the table added to each token by a plain hook on the block."""
    ids, first = list(ids), len(ids)
    for _ in range(LENGTH):
        added = table[: len(ids)]
        hook = lm.layers[layer].register_forward_pre_hook(lambda _, args, added=added: (args[0] + added, *args[1:]))
        with torch.no_grad():
            chosen = int(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        hook.remove()
        if chosen == lm.tokenizer.eos_token_id:
            break
        ids.append(chosen)
    return ids[first:]


def test_noise_is_another_vector_at_every_token_whatever_the_batch(lm):
    rows = lm.encode(ASKED[:5])
    drawn = noise(WIDTH, max(map(len, rows)) + LENGTH, Aim(SOURCE, SCALE, None), (1.0,), 2, seed=0)
    pushes = [push for [push] in drawn]
    for push in pushes:
        norms = push.added.norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, SCALE))
        assert float((push.added[:-1] * push.added[1:]).sum(1).abs().max()) < 0.9 * SCALE**2
    got = Replies(lm, LENGTH, batch=4).said([(push, prompt) for push in pushes for prompt in ASKED[:5]])
    wanted = [lm.decode(greedy(lm, ids, push.added, SOURCE)) for push in pushes for ids in rows]
    assert got == wanted
    assert got[:5] != got[5:]


def test_noise_at_a_position_depends_on_seed_and_position_alone():
    aim = Aim(SOURCE, SCALE, None)
    short, long = (
        [push for pushes in noise(WIDTH, positions, aim, (0.5, 1.0), 2, seed=0) for push in pushes]
        for positions in (9, 40)
    )
    for a, b in zip(short, long, strict=True):
        assert torch.equal(a.added, b.added[:9])
    torch.testing.assert_close(short[1].added, 2 * short[0].added)
    assert not torch.allclose(short[2].added, short[0].added)


def test_more_tokens_than_positions_are_refused(lm):
    table = torch.zeros(1, 4, WIDTH)
    with pytest.raises(DctError, match="steering vectors for 4 positions"), dct.steer(lm, table, SOURCE):
        lm.model(torch.tensor([[1, 2, 3, 4, 5]]))


# --- the supervised baseline ------------------------------------------------------------------------------------------


def test_streams_that_enter_every_layer_are_hidden_states(lm):
    rows = lm.encode(ASKED[:3])
    seen = entering(lm, rows, [0, 2, 4])
    for k, layer in enumerate((0, 2, 4)):
        states = []
        for row in rows:
            with torch.no_grad():
                out = lm.model(torch.tensor([row]), output_hidden_states=True)
            states.append(out.hidden_states[layer][0])
        torch.testing.assert_close(seen.last[k], torch.stack([s[-1] for s in states]))
        torch.testing.assert_close(seen.mean[k], torch.stack([s.mean(0) for s in states]))
        torch.testing.assert_close(seen.norm[k], torch.cat(states).norm(dim=1).median())


@pytest.mark.parametrize(
    ("depth", "count", "source", "layers"),
    [(12, 4, 0, [0, 4, 7, 11]), (12, 4, 5, [0, 5, 7, 11]), (5, 9, 2, [0, 1, 2, 3, 4]), (32, 1, 10, [10]),
     (32, 3, 10, [0, 10, 31]), (2, 2, 1, [0, 1])],
)  # fmt: skip
def test_layers_are_evenly_spaced_with_the_source_among_them(depth, count, source, layers):
    assert spread(depth, count, source) == layers


def test_lengths_fill_up_what_layers_do_not():
    assert lengths((0.7, 1.0, 1.4), 3) == [0.7, 1.0, 1.4]
    assert lengths((0.5, 2.0), 3) == pytest.approx([0.5, 1.0, 2.0])
    assert lengths((1.0,), 3) == pytest.approx([0.5, 1.0, 2.0])


def test_differences_of_means_are_as_long_as_the_streams_and_ordered_by_score(lm):
    aim, pair = Aim(SOURCE, SCALE, None), words(lm, "Tell me", "How")
    entrants = supervised(lm, pair, ASKED[:6], MILD, aim, (0.5, 1.0), 6, 4)
    assert [len(pushes) for pushes in entrants] == [2] * DEPTH
    pushes = [push for several in entrants for push in several]
    norms, scores = {}, {}
    for layer in {push.layer for push in pushes}:
        states = []
        for text in (MILD, ASKED[:6]):
            with torch.no_grad():
                outs = [lm.model(torch.tensor([row]), output_hidden_states=True) for row in lm.encode(text)]
            states.append([out.hidden_states[layer][0] for out in outs])
        norms[layer] = torch.cat(states[1]).norm(dim=1).median()
        means = [torch.stack([s[-1] for s in side]).mean(0) for side in states]
        if layer == 0:  # behind the template all prompts end alike
            means = [torch.stack([s.mean(0) for s in side]).mean(0) for side in states]
        unit = (means[0] - means[1]) / (means[0] - means[1]).norm()
        for push in (p for p in pushes if p.layer == layer):
            torch.testing.assert_close(push.added / push.added.norm(), unit, rtol=1e-3, atol=1e-4)
        mine = [p for p in pushes if p.layer == layer]
        scorer = Scorer(lm, pair, layer, ASKED[:4])
        scores[layer] = scorer.effects(mine[-1].added[None] * (mine[-1].added.norm() / mine[-1].scale))[0].score
        assert [p.scale for p in mine] == sorted(p.scale for p in mine)
    for push in pushes:
        unscaled = SCALE * float(norms[push.layer] / norms[SOURCE])
        assert push.scale in (pytest.approx(0.5 * unscaled, rel=1e-4), pytest.approx(unscaled, rel=1e-4))
        assert push.scale == pytest.approx(float(push.added.norm()), rel=1e-4)
    order = list(dict.fromkeys(push.layer for push in pushes))
    assert order == sorted(order, key=lambda layer: -scores[layer])
    assert sorted(order) == list(range(DEPTH))


def test_the_model_s_own_run_says_what_a_scorer_says(lm):
    """Scores and damage read from whole padded passes, against slices."""
    pair = words(lm, "Tell me", "How do I")
    scorer = Scorer(lm, pair, SOURCE, ASKED[:5], MILD)
    for theta, effect in zip(SCALE * directions(3), scorer.effects(SCALE * directions(3)), strict=True):
        own = own_difference(lm, pair, lm.encode(ASKED[:5]), theta, SOURCE)
        assert effect.score == pytest.approx(sum(own) / 5, abs=1e-3)
        before, after = next_logs(lm, lm.encode(MILD)), next_logs(lm, lm.encode(MILD), theta, SOURCE)
        assert effect.kl == pytest.approx(float((before.exp() * (before - after)).sum(1).mean()), rel=1e-3)


def test_few_logits_are_in_memory_at_a_time(lm, monkeypatch):
    rows = lm.encode([*ASKED, *MILD])
    whole = next_logs(lm, rows)
    monkeypatch.setattr("dct.logits.NUMBERS", 2 * lm.vocabulary * max(map(len, rows)))
    torch.testing.assert_close(next_logs(lm, rows), whole, rtol=1e-4, atol=1e-5)


# --- prompts ----------------------------------------------------------------------------------------------------------


class Said(Replies):
    """Replies that are what a table says."""

    def __init__(self, lm: dct.LanguageModel, texts: dict[str, str]) -> None:
        super().__init__(lm, 1)
        self.texts, self.asked = texts, []

    def said(self, asked):
        self.asked += [prompt for _, prompt in asked]
        return [self.texts[prompt] for _, prompt in asked]


class Labels(Judge):
    """A reply names its label; with an x in it, it is incoherent."""

    name = "labels"
    about = "as it is told"

    def verdicts(self, replies):
        return [Verdict(reply.completion.removesuffix("x"), not reply.completion.endswith("x")) for reply in replies]


def pool_of(lm, labels: str, sizes: tuple[int, int], wanted: str = "complied"):
    long = {"r": "refused", "c": "complied", "o": "other", "x": "compliedx"}
    texts = {f"{k}": long[one] for k, one in enumerate(labels)}
    said = Said(lm, texts)
    return divided(said, Labels(), list(texts), sizes, wanted), said


def test_kept_are_the_prompts_that_the_model_refuses_in_order(lm):
    pool, _ = pool_of(lm, "rcrorrxr", (2, 3))
    assert (pool.validation, pool.test) == (("0", "2"), ("4", "5", "7"))
    assert pool.labels == {"refused": 5, "complied": 2, "other": 1}
    assert pool.told == "unsteered, the model refuses 5 of 8 prompts: 2 to choose by, 3 to report on"


def test_few_prompts_are_divided_in_proportion(lm):
    pool, _ = pool_of(lm, "r" * 33, (32, 100))
    assert (len(pool.validation), len(pool.test)) == (8, 25)
    pool, _ = pool_of(lm, "r" * 4, (32, 100))
    assert (len(pool.validation), len(pool.test)) == (2, 2)
    pool, _ = pool_of(lm, "r" * 9, (1, 100))
    assert (len(pool.validation), len(pool.test)) == (1, 8)


def test_no_more_prompts_are_asked_than_are_needed(lm):
    _, said = pool_of(lm, "r" * 300, (8, 24))
    assert len(said.asked) == 64


def test_a_model_that_refuses_nothing_gains_where_its_replies_are_no_success(lm):
    pool, _ = pool_of(lm, "oxcoocx", (2, 3))
    assert (pool.validation, pool.test) == (("0", "1"), ("3", "4", "6"))
    assert "5 of 7 replies are not what is wanted" in pool.told


def test_another_label_can_be_wanted(lm):
    pool, _ = pool_of(lm, "rcrorcc", (2, 2), "refused")
    assert pool.validation + pool.test == ("1", "3", "5", "6")


@pytest.mark.parametrize("labels", ["crcc", "ccccc", "rrr"])
def test_too_few_prompts_name_the_cures(lm, labels):
    with pytest.raises(DctError, match=r"`prompts`.*`wanted`.*`judge`.*`screen_only`"):
        pool_of(lm, labels, (2, 3))


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead", "behind"), [(0, 0), (1, 0), (0, 5), (3, 3), (7, 2), (2, 7), (10, 0), (4, 1)])
def test_mcnemar_is_exact(ahead, behind):
    """By all ways in which the prompts that differ can fall, each as likely as another."""
    first = [True] * ahead + [False] * behind + [True, True, False]
    second = [False] * ahead + [True] * behind + [True, True, False]
    n, seen = ahead + behind, max(ahead, behind)
    ways = [sum(w) for w in itertools.product((0, 1), repeat=n)]
    extreme = sum(max(k, n - k) >= seen for k in ways)
    assert mcnemar(first, second) == pytest.approx(extreme / len(ways))


def contested(*marks: tuple[int, int]) -> Contest:
    return Contest([(k, Mark(*mark)) for k, mark in enumerate(marks)], Mark(0, 1))


@pytest.mark.parametrize(
    ("marks", "damages", "first"),
    [
        ([(32, 32), (31, 32), (30, 32)], [2.8, 1.5, 1.2], 1),  # a success is 0.031, a nat 0.038
        ([(32, 32), (31, 32)], [1.5, 2.8], 0),
        ([(32, 32), (31, 32)], [0.07, 0.01], 0),  # little damage decides nothing
        ([(32, 32), (32, 32)], [0.09, 0.01], 0),  # not even between equals
        ([(32, 32), (32, 32)], [0.2, 0.01], 1),
        ([(32, 32), (31, 32)], [1.5, 1.5], 0),
        ([(32, 32), (17, 32)], [14.0, 0.1], 1),  # a broken model
        ([(31, 32), (16, 16)], [9.0, 0.1], 0),  # asked less
        ([(0, 8), (0, 8), (0, 8)], [0.3, 0.2, 0.4], 1),
    ],
)
def test_damage_counts_against_a_push_as_much_as_chance_may_have_helped_it(marks, damages, first):
    pushes = [Push(0, torch.full((2,), float(k))) for k in range(len(marks))]
    found = preferred(contested(*marks), pushes, lambda push: damages[int(push.added[0])])
    assert found.order[0] == (first, Mark(*marks[first]))
    assert sorted(found.order) == sorted(contested(*marks).order, key=lambda one: one[0])


def test_a_standard_error_is_that_of_the_share_and_does_not_vanish():
    assert standard_error(30, 60) == pytest.approx((0.25 / 64) ** 0.5)
    assert standard_error(32, 32) == pytest.approx(standard_error(0, 32))
    assert 0.03 < standard_error(32, 32) < 0.05


def test_what_breaks_the_model_comes_last_in_the_screen():
    """A score is high under nonsense too."""
    effects = [Effect(9.0, 1.0, 4.6), Effect(1.0, 0.0, 0.1), Effect(3.0, 0.0, 0.9), Effect(8.0, 1.0, 1.2)]
    screened = Screen([*"0123"], torch.eye(4), [1.0] * 4, effects, torch.eye(4), [Effect(0.0, 0.0, None)] * 4)
    assert screened.order == [2, 1, 0, 3]
