"""Scores, damage and order, against forward passes of the whole model with the vector added by a plain hook."""

import copy
import json
import math

import pytest
import torch
import transformers
from conftest import WIDTH
from torch import Tensor

import dct
from dct import DctError, NonFiniteError, UsageError
from dct.blocks import readout
from dct.candidates import aggregate, candidates, chosen
from dct.factors import Factors
from dct.plainjson import dumps
from dct.ranking import Watch, rank
from dct.scoring import Effect, Reading, Scorer, difference_of_means, divergence
from dct.slice import Slice
from dct.wordpair import words

SOURCE, SCALE = 2, 3.0
HARMLESS = ["What is two plus two?", "Write a poem about the moon"]


@pytest.fixture(scope="module")
def lm(make_lm) -> dct.LanguageModel:
    return make_lm("llama")


@pytest.fixture(scope="module")
def plain(make_lm) -> dct.LanguageModel:
    """A model without a chat template; " Sure" and " Sorry" are single tokens."""
    lm = make_lm("llama")
    lm.tokenizer = copy.deepcopy(lm.tokenizer)
    lm.tokenizer.chat_template = None
    return lm


def directions(n: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=1, keepdim=True)


def make_factors(n: int = 4, method: str = "exponential", **info: object) -> Factors:
    alpha = torch.tensor([2.0, 5.0, 1.0, 3.0])[:n]
    return Factors(
        directions(n), directions(n, 1), alpha, torch.zeros(1, 3), SCALE, {"method": method, "source": SOURCE, **info}
    )


def last_logits(lm: dct.LanguageModel, ids: list[list[int]], theta: Tensor | None = None) -> Tensor:
    """float64 logits after each prompt, theta added to hidden_states[SOURCE] by a hook on the block below."""
    added = torch.zeros(WIDTH) if theta is None else theta

    def add(_: object, __: object, output: object) -> object:
        return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

    handle = lm.layers[SOURCE - 1].register_forward_hook(add)
    with torch.no_grad():
        rows = [lm.model(torch.tensor([row])).logits[0, -1] for row in ids]
    handle.remove()
    return torch.stack(rows).double()


def tokens(lm: dct.LanguageModel, prompts: list[str]) -> list[list[int]]:
    if lm.tokenizer.chat_template:
        prompts = [f"<s><user>{p}<assistant>" for p in prompts]
    return [lm.tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]


def kl(lm: dct.LanguageModel, theta: Tensor) -> float:
    p, q = (torch.softmax(last_logits(lm, tokens(lm, HARMLESS), t), dim=-1) for t in (None, theta))
    return float((p * (p / q).log()).sum(1).mean())


def vocabulary(lm: dct.LanguageModel, *texts: str) -> list[int]:
    return lm.tokenizer.convert_tokens_to_ids(list(texts))


def test_effects_are_those_of_the_whole_model(plain, prompts):
    """Score, flipped share and damage of each vector, one forward pass a prompt."""
    thetas = SCALE * directions(6)
    effects = Scorer(plain, words(plain, "Sure", "Sorry"), SOURCE, prompts, HARMLESS).effects(thetas)
    sure, sorry = vocabulary(plain, "ĠSure", "ĠSorry")

    def difference(theta: Tensor | None) -> Tensor:
        logits = last_logits(plain, tokens(plain, prompts), theta)
        return logits[:, sure] - logits[:, sorry]

    base, shares = difference(None), []
    for effect, theta in zip(effects, thetas, strict=True):
        moved = difference(theta)
        shares.append(float((moved.sign() != base.sign()).double().mean()))
        assert effect.score == pytest.approx(float(moved.mean()), abs=1e-4)
        assert effect.flipped == pytest.approx(shares[-1])
        assert effect.kl == pytest.approx(kl(plain, theta), rel=1e-3, abs=1e-6)
    assert len(set(shares)) > 1  # some vectors flip some prompts


def test_unsteered_effect(plain, prompts):
    scorer = Scorer(plain, words(plain, "Sure", "Sorry"), SOURCE, prompts, HARMLESS)
    sure, sorry = vocabulary(plain, "ĠSure", "ĠSorry")
    logits = last_logits(plain, tokens(plain, prompts))
    assert scorer.unsteered.score == pytest.approx(float((logits[:, sure] - logits[:, sorry]).mean()), abs=1e-4)
    assert (scorer.unsteered.flipped, scorer.unsteered.kl) == (0.0, 0.0)


def test_without_harmless_prompts_there_is_no_damage(plain, prompts):
    scorer = Scorer(plain, words(plain, "Sure", "Sorry"), SOURCE, prompts)
    assert scorer.unsteered.kl is None
    assert scorer.effects(directions(2))[0].kl is None
    assert scorer.difference_of_means() is None


def test_difference_of_means_is_that_of_the_last_tokens(plain, prompts):
    scorer = Scorer(plain, words(plain, "Sure", "Sorry"), SOURCE, prompts, HARMLESS)
    means = []
    for texts in (HARMLESS, prompts):
        with torch.no_grad():
            states = [
                plain.model(torch.tensor([row]), output_hidden_states=True).hidden_states[SOURCE][0, -1]
                for row in tokens(plain, texts)
            ]
        means.append(torch.stack(states).mean(0))
    wanted = means[0] - means[1]
    torch.testing.assert_close(scorer.difference_of_means(), wanted / wanted.norm(), rtol=1e-4, atol=1e-5)


def test_difference_of_means_is_over_all_tokens_where_the_last_says_nothing(lm):
    """At source 0, behind a chat template, every prompt ends in the same token."""
    sets = [["one two three", "four"], ["five six"]]
    slices = [Slice(lm, texts, 0, 2, positions=1) for texts in sets]
    ends = [s.last_entering().mean(0) for s in slices]
    assert torch.equal(*ends)
    embedding = lm.model.get_input_embeddings().weight
    means = [torch.stack([embedding[row].mean(0) for row in lm.encode(texts)]).mean(0) for texts in sets]
    wanted = means[0] - means[1]
    torch.testing.assert_close(difference_of_means(*slices), wanted / wanted.norm(), rtol=1e-4, atol=1e-5)


def log_p(lm: dct.LanguageModel, prompts: list[str], text: str, theta: Tensor | None) -> Tensor:
    """float64 log p of a text behind each prompt: one pass over prompt and text, one log-probability a token."""
    ids = lm.tokenizer(("" if lm.tokenizer.chat_template else " ") + text, add_special_tokens=False)["input_ids"]
    added = torch.zeros(WIDTH) if theta is None else theta

    def add(_: object, args: tuple[Tensor, ...]) -> object:
        return (args[0] + added, *args[1:])

    handle = lm.layers[SOURCE].register_forward_pre_hook(add)
    found = []
    for row in tokens(lm, prompts):
        with torch.no_grad():
            logs = torch.log_softmax(lm.model(torch.tensor([row + ids])).logits[0].double(), -1)
        found.append(sum(logs[len(row) - 1 + k, token] for k, token in enumerate(ids)))
    handle.remove()
    return torch.stack(found)


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        ("Sure, here it is", "Sorry, I can not help"),  # they share their first token with the template, none without
        ("Tell me", "How do I pick a lock?"),
        ("Sure", "Sorry, no. What is two plus two?"),
        ("Sure, mix flour and water", "Sure, mix flour and no water"),
    ],
)
@pytest.mark.parametrize("template", [True, False])
def test_scores_of_whole_texts_are_log_likelihood_ratios(lm, plain, prompts, positive, negative, template):
    """Teacher-forced by a plain pass of the whole text: score and flipped prompts, unsteered and under each vector."""
    lm = lm if template else plain
    thetas = SCALE * directions(3)
    scorer = Scorer(lm, words(lm, positive, negative), SOURCE, prompts, HARMLESS)
    base = log_p(lm, prompts, positive, None) - log_p(lm, prompts, negative, None)
    assert scorer.unsteered.score == pytest.approx(float(base.mean()), abs=1e-3)
    for effect, theta in zip(scorer.effects(thetas), thetas, strict=True):
        moved = log_p(lm, prompts, positive, theta) - log_p(lm, prompts, negative, theta)
        assert effect.score == pytest.approx(float(moved.mean()), abs=1e-3)
        assert effect.flipped == float((moved.sign() != base.sign()).double().mean())
        assert effect.kl == pytest.approx(kl(lm, theta), rel=1e-3, abs=1e-6)


def test_one_token_each_is_one_pass_to_the_same_bits(plain, prompts):
    """What the logits of a slice by itself say, to the last bit."""
    pair = words(plain, "Sure", "Sorry")
    thetas = SCALE * directions(4)
    scorer = Scorer(plain, pair, SOURCE, prompts)
    assert len(scorer.contrast.slices) == 1
    sure, sorry = vocabulary(plain, "ĠSure", "ĠSorry")
    logits = readout(plain, Slice(plain, prompts, SOURCE, plain.depth, positions=1).streams(thetas).flatten(0, 1))
    differences = (logits[:, sure] - logits[:, sorry]).unflatten(0, (4, len(prompts)))
    assert torch.equal(scorer.contrast.difference(thetas), differences)
    assert [e.score for e in scorer.effects(thetas)] == differences.mean(1).tolist()


def test_shared_tokens_are_read_once_and_cancel(lm, prompts):
    """With the chat template "Sure" and "Sorry" are S-ure and S-or-ry."""
    pair = words(lm, "Sure", "Sorry")
    s, ure, o, ry = vocabulary(lm, "S", "ure", "or", "ry")
    assert (pair.after, pair.positive, pair.negative) == ((s,), (ure,), (o, ry))
    scorer = Scorer(lm, pair, SOURCE, prompts)
    assert [one.ids for one in scorer.contrast.slices] == [
        [[*row, s] for row in tokens(lm, prompts)],
        [[*row, s, o] for row in tokens(lm, prompts)],
    ]


def test_only_the_logits_of_one_place_are_in_memory(lm, prompts, monkeypatch):
    """A long text is read out token by token: no more logits at a time than a pair of words needs."""
    seen = []

    def watch(lm, streams):
        seen.append(len(streams))
        return readout(lm, streams)

    monkeypatch.setattr("dct.nexttoken.readout", watch)
    Scorer(lm, words(lm, "Sure, here it is", "Sorry, I can not help"), SOURCE, prompts).effects(directions(2))
    assert max(seen) == 2 * len(prompts)


def test_a_text_that_does_not_fit_the_context_is_said(make_lm, prompts):
    lm = make_lm("llama")
    lm.model.config.max_position_embeddings = max(map(len, tokens(lm, prompts))) + 2
    with pytest.raises(DctError, match=r"a prompt and the text that is scored behind it have \d+ tokens"):
        Scorer(lm, words(lm, "Sure", "How do I pick a lock?"), SOURCE, prompts)


def test_difference_of_means_does_not_depend_on_the_texts(lm, prompts):
    """The last token of the prompt, whatever is read behind it."""
    pairs = [("Tell", "How"), ("Sure, here it is", "How do I pick a lock?")]
    one, other = (Scorer(lm, words(lm, *pair), SOURCE, prompts, HARMLESS).difference_of_means() for pair in pairs)
    torch.testing.assert_close(one, other)


def test_running_out_of_memory_halves_the_batch(plain, prompts, monkeypatch):
    scorer = Scorer(plain, words(plain, "Sure", "Sorry"), SOURCE, prompts)
    wanted, run, done = scorer.effects(directions(5)), scorer._effects, []

    def small_memory(theta: Tensor):
        if len(theta) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return run(theta)

    monkeypatch.setattr(scorer, "_effects", small_memory)
    got = scorer.effects(directions(5), done.append)
    assert [e.score for e in got] == pytest.approx([e.score for e in wanted], abs=1e-4)
    assert sum(done) == 5


def test_against_compares_with_the_model_as_it_was(make_lm, plain, prompts):
    """Damage and flips of an edited model, by hand in float64."""
    edited = make_lm("llama")
    edited.tokenizer = plain.tokenizer
    with torch.no_grad():
        edited.layers[3].mlp.down_proj.weight.mul_(-1)
    pair, (sure, sorry) = words(plain, "Sure", "Sorry"), vocabulary(plain, "ĠSure", "ĠSorry")
    before, after = (Reading.of(m, pair, prompts, HARMLESS) for m in (plain, edited))
    p, q = (torch.softmax(last_logits(m, tokens(m, HARMLESS)), dim=-1) for m in (plain, edited))
    a, b = (last_logits(m, tokens(m, prompts)) for m in (plain, edited))
    a, b = (x[:, sure] - x[:, sorry] for x in (a, b))
    effect = after.against(before)
    assert effect.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-3)
    assert effect.score == pytest.approx(float(b.mean()), abs=1e-4)
    assert effect.flipped == pytest.approx(float((a.sign() != b.sign()).double().mean()))
    alone = before.against(before)
    assert (alone.score, alone.flipped, alone.kl) == (pytest.approx(float(a.mean()), abs=1e-4), 0.0, 0.0)


@pytest.mark.parametrize("texts", [("Sure", "Sorry"), ("Tell me", "Sure"), ("Sure", "Tell me")])
def test_readings_are_what_the_scorer_finds(plain, prompts, texts):
    pair = words(plain, *texts)
    alone, scorer = Reading.of(plain, pair, prompts, HARMLESS), Scorer(plain, pair, SOURCE, prompts, HARMLESS)
    torch.testing.assert_close(alone.differences, scorer.base, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(alone.following, scorer.harmless.base, atol=1e-4, rtol=1e-5)
    v = 3 * directions(1)
    read = Reading.of(plain, pair, prompts, HARMLESS, added=v[0], layer=SOURCE).against(alone)
    [found] = scorer.effects(v)
    assert (read.score, read.kl) == (pytest.approx(found.score, abs=1e-4), pytest.approx(found.kl, rel=1e-3))
    assert read.kl > 0
    assert read.flipped == found.flipped


def test_a_reading_refuses_what_is_no_number_and_what_is_too_long(make_lm, prompts):
    lm = make_lm("llama")
    pair = words(lm, "Sure", "Sorry")
    with torch.no_grad():
        lm.layers[3].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        Reading.of(lm, pair, prompts)
    with pytest.raises(DctError, match="shorten either"):
        Reading.of(lm, words(lm, "Sure", "Sorry, " * 6), ["so long " * (lm.context // 8 - 1)])


def test_single_token_words(plain):
    pair = words(plain, "Sure", "Sorry")
    assert [*pair.positive, *pair.negative] == vocabulary(plain, "ĠSure", "ĠSorry")
    assert (pair.after, pair.notes) == ((), ())
    assert pair.label == "logit(ĠSure) − logit(ĠSorry)"


def test_words_of_several_tokens_are_taken_whole(lm):
    pair = words(lm, "Tell", "Sure")
    assert pair.positive == tuple(vocabulary(lm, "Te", "l", "l"))
    assert pair.negative == tuple(vocabulary(lm, "S", "ure"))
    assert (pair.after, pair.notes, pair.label) == ((), (), "log p(Tell) − log p(Sure)")


def test_shared_first_tokens_are_said_where_one_token_each_is_left(lm):
    pair = words(lm, "Sure", "Sor")
    assert [*pair.after, *pair.positive, *pair.negative] == vocabulary(lm, "S", "ure", "or")
    assert (pair.shown_positive, pair.shown_negative) == ("ure", "or")
    assert len(pair.notes) == 1
    assert "share their first 1 token" in pair.notes[0]


@pytest.mark.parametrize(("positive", "negative"), [("Sure", "Sure"), ("S", "Sure"), ("Sure", "S")])
def test_words_that_cannot_be_told_apart(lm, positive, negative):
    with pytest.raises(DctError, match="choose other words"):
        words(lm, positive, negative)


def test_a_word_without_tokens(lm):
    with pytest.raises(DctError, match="no tokens"):
        words(lm, "", "Sorry")


@pytest.mark.parametrize("method", ["linear", "linear-projected", "linear-randomized", "quadratic"])
def test_signless_factors_are_candidates_in_both_senses(method):
    names, vectors = candidates(make_factors(2, method))
    assert names == ["0", "1", "-0", "-1"]
    torch.testing.assert_close(vectors, torch.cat([directions(2), -directions(2)]))


def test_exponential_factors_have_a_sign():
    names, vectors = candidates(make_factors(2))
    assert names == ["0", "1"]
    torch.testing.assert_close(vectors, directions(2))


@pytest.mark.parametrize(("name", "sign"), [("3", 1), ("-3", -1), (" 3 ", 1)])
def test_chosen_direction(name, sign):
    factors = make_factors()
    assert torch.equal(chosen(factors, name), sign * factors.V[3])
    assert torch.equal(chosen(factors, name, "target"), sign * factors.U[3])


def test_minus_zero_is_the_opposite_of_the_first():
    assert torch.equal(chosen(make_factors(), "-0"), -directions(4)[0])


@pytest.mark.parametrize("name", ["4", "-4", "99"])
def test_vector_out_of_range(name):
    with pytest.raises(DctError, match="0 to 3"):
        chosen(make_factors(), name)


@pytest.mark.parametrize("name", ["", "-", "x", "1.5", "--1"])
def test_vector_that_is_no_number(name):
    with pytest.raises(UsageError, match="number"):
        chosen(make_factors(), name)


def test_mean_aggregate():
    rows = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    torch.testing.assert_close(aggregate(rows, "mean"), torch.tensor([[1.0, 1, 0]]) / math.sqrt(2))


def test_svd_aggregate_is_the_top_eigenvector_of_the_gram_matrix_in_both_senses():
    rows = directions(7)
    got = aggregate(rows, "svd")
    top = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -1]
    assert got.shape == (2, WIDTH)
    assert torch.equal(got[0], -got[1])
    assert abs(float(got[0] @ top)) == pytest.approx(1, abs=1e-5)


def test_vanishing_mean_and_unknown_aggregates():
    rows = torch.stack([directions(1)[0], -directions(1)[0]])
    with pytest.raises(DctError, match="svd"):
        aggregate(rows, "mean")
    with pytest.raises(UsageError, match="mean or svd"):
        aggregate(rows, "median")


@pytest.mark.parametrize("by", ["score", "alpha", "kl"])
def test_order(plain, prompts, by):
    """Every vector's place follows from effects that are computed by hand."""
    ranking = rank(plain, make_factors(), prompts, HARMLESS, by=by)
    sure, sorry = vocabulary(plain, "ĠSure", "ĠSorry")
    keys = {}
    for k, v in enumerate(SCALE * directions(4)):
        logits = last_logits(plain, tokens(plain, prompts), v)
        score = float((logits[:, sure] - logits[:, sorry]).mean())
        keys[str(k)] = {"score": -score, "alpha": -[2.0, 5.0, 1.0, 3.0][k], "kl": kl(plain, v)}[by]
    assert [r.vector for r in ranking.vectors] == sorted(keys, key=keys.__getitem__)


def test_signless_factors_are_ranked_in_both_senses_with_their_alpha(plain, prompts):
    ranking = rank(plain, make_factors(method="linear"), prompts)
    assert sorted(r.vector for r in ranking.vectors) == ["-0", "-1", "-2", "-3", "0", "1", "2", "3"]
    assert {r.vector: r.alpha for r in ranking.vectors}["-1"] == 5.0
    best = ranking.vectors[0]
    v = SCALE * directions(4)[int(best.vector.removeprefix("-"))] * (-1 if best.vector.startswith("-") else 1)
    logits = last_logits(plain, tokens(plain, prompts), v)
    sure, sorry = vocabulary(plain, "ĠSure", "ĠSorry")
    assert best.effect.score == pytest.approx(float((logits[:, sure] - logits[:, sorry]).mean()), abs=1e-4)


def test_the_null_has_as_many_random_vectors_at_the_same_norm(plain, prompts, monkeypatch):
    given = []
    effects = Scorer.effects

    def watch(self, vectors, on_rows=None):
        given.append(vectors)
        return effects(self, vectors, on_rows)

    monkeypatch.setattr(Scorer, "effects", watch)
    ranking = rank(plain, make_factors(method="linear"), prompts, HARMLESS)
    null = next(v for v in given[1:] if len(v) == 8)
    torch.testing.assert_close(null.norm(dim=1), torch.full((8,), SCALE))
    sure, sorry = vocabulary(plain, "ĠSure", "ĠSorry")
    logits = [last_logits(plain, tokens(plain, prompts), v) for v in null]
    scores = [float((x[:, sure] - x[:, sorry]).mean()) for x in logits]
    assert ranking.random_best.score == pytest.approx(max(scores), abs=1e-4)
    assert ranking.random_mean.score == pytest.approx(sum(scores) / 8, abs=1e-4)


def test_baselines_and_counts(plain, prompts):
    ranking = rank(plain, make_factors(), prompts, HARMLESS)
    assert (ranking.scale, ranking.prompts, ranking.harmless) == (SCALE, 4, 2)
    assert ranking.supervised is not None
    assert rank(plain, make_factors(), prompts).supervised is None


def test_layer_and_scale_can_be_overridden(plain, prompts):
    """Steering at SOURCE with another scale, though the factors name another layer."""
    factors = make_factors(1)
    factors.info["source"] = 0
    ranking = rank(plain, factors, prompts, source=SOURCE, scale=1.5)
    logits = last_logits(plain, tokens(plain, prompts), 1.5 * directions(1)[0])
    sure, sorry = vocabulary(plain, "ĠSure", "ĠSorry")
    assert ranking.vectors[0].effect.score == pytest.approx(
        float((logits[:, sure] - logits[:, sorry]).mean()), abs=1e-4
    )


def test_the_system_message_of_the_fit_is_used_unless_another_is_given(lm, prompts):
    system = "Be brief."
    told = rank(lm, make_factors(1, system=system), prompts, positive="T", negative="S")
    te, s = vocabulary(lm, "T", "S")
    texts = [f"<s><system>{system}<user>{p}<assistant>" for p in prompts]
    ids = [lm.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    logits = last_logits(lm, ids, SCALE * directions(1)[0])
    assert told.vectors[0].effect.score == pytest.approx(float((logits[:, te] - logits[:, s]).mean()), abs=1e-4)


def test_unknown_order_or_layer_is_wrong_usage(plain, prompts):
    with pytest.raises(UsageError, match="score, alpha, kl"):
        rank(plain, make_factors(), prompts, by="luck")
    with pytest.raises(UsageError, match="harmless"):
        rank(plain, make_factors(), prompts, by="kl")
    factors = make_factors()
    del factors.info["source"]
    with pytest.raises(UsageError, match="source"):
        rank(plain, factors, prompts)


# --- scales -----------------------------------------------------------------------------------------------------------


def test_each_vector_keeps_the_scale_under_which_it_scores_highest(plain, prompts):
    scales = (0.5, 1.0, 2.0)
    together = rank(plain, make_factors(), prompts, HARMLESS, scales=scales)
    apart = [rank(plain, make_factors(), prompts, HARMLESS, scale=c * SCALE) for c in scales]
    for ranked in together.vectors:
        alone = [next(r for r in one.vectors if r.vector == ranked.vector) for one in apart]
        best = max(alone, key=lambda r: r.effect.score)
        assert ranked.effect.score == pytest.approx(best.effect.score, abs=1e-5)
        assert ranked.effect.kl == pytest.approx(best.effect.kl, abs=1e-5)
        assert ranked.scale == pytest.approx(best.scale)
    assert len(together.vectors) == 4
    assert len({r.scale for r in together.vectors}) > 1


def test_the_null_has_as_many_tries(plain, prompts):
    """The random best of a search over scales is the best over the searches at each of them, and so is supervised."""
    scales = (0.5, 1.0, 2.0)
    together = rank(plain, make_factors(), prompts, HARMLESS, scales=scales)
    apart = [rank(plain, make_factors(), prompts, HARMLESS, scale=c * SCALE) for c in scales]
    assert together.random_best.score == pytest.approx(max(a.random_best.score for a in apart), abs=1e-5)
    assert together.random_mean.score >= max(a.random_mean.score for a in apart) - 1e-5
    assert together.supervised.score == pytest.approx(max(a.supervised.score for a in apart), abs=1e-5)


def test_broken_tries_come_last(plain, prompts):
    free = rank(plain, make_factors(), prompts, HARMLESS, scales=(0.25, 2.0))
    limit = sorted(r.effect.kl for r in free.vectors)[1]
    bound = rank(plain, make_factors(), prompts, HARMLESS, scales=(0.25, 2.0), max_damage=limit)
    within = [r.effect.kl <= limit for r in bound.vectors]
    assert within == sorted(within, reverse=True)
    assert bound.random_best.kl <= limit
    for r in bound.vectors:  # a smaller scale is taken where the larger one breaks the model
        before = next(f for f in free.vectors if f.vector == r.vector)
        assert r.effect.kl <= limit or r.effect.score == pytest.approx(before.effect.score, abs=1e-5)
    with pytest.raises(UsageError, match="`max_damage` needs harmless"):
        rank(plain, make_factors(), prompts, max_damage=1.0)


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -2.0), (float("inf"),)])
def test_scales_must_be_positive(plain, prompts, scales):
    with pytest.raises(UsageError, match="positive multiples"):
        rank(plain, make_factors(), prompts, scales=scales)


# --- heads that rule tokens out ---------------------------------------------------------------------------------------


def by_hand(before: list[float], after: list[float]) -> float:
    """KL of the distributions of two rows of logits, term by term in float64."""

    def logs(row: list[float]) -> list[float]:
        top = max(row)
        total = math.fsum(math.exp(x - top) for x in row)
        return [x - top - math.log(total) for x in row]

    terms = []
    for p, q in zip(logs(before), logs(after), strict=True):
        if p == -math.inf:
            continue
        if q == -math.inf:
            return math.inf
        terms.append(math.exp(p) * (p - q))
    return math.fsum(terms)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0.3, -1.0, 2.0, 0.0], [1.0, -1.0, 0.5, 0.1]),
        ([0.3, -math.inf, 2.0, 0.0], [1.0, -math.inf, 0.5, 0.1]),
        ([0.3, -math.inf, 2.0, 0.0], [1.0, 3.0, 0.5, 0.1]),
        ([0.3, -1.0, 2.0, 0.0], [1.0, -math.inf, 0.5, 0.1]),
        ([0.3, -300.0, 2.0, 0.0], [1.0, -math.inf, 0.5, 0.1]),  # improbable beyond float32, and yet possible
        ([0.3, -300.0, 2.0, 0.0], [1.0, 5.0, 0.5, 0.1]),
        ([-math.inf, -math.inf, 0.0, -math.inf], [-math.inf, 1.0, 0.0, -math.inf]),
        ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_divergence_with_impossible_tokens(before, after):
    p, q = (torch.log_softmax(torch.tensor([row]), -1) for row in (before, after))
    assert float(divergence(p, q)) == pytest.approx(by_hand(before, after), abs=1e-6)
    assert divergence(p, q[None].expand(3, -1, -1)).tolist() == [float(divergence(p, q))] * 3


def ruled_out(tokenizer, *tokens: int, value: float = -math.inf) -> dct.LanguageModel:
    """A Phi whose head gives some tokens a logit of minus infinity."""
    config = transformers.PhiConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.PhiForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.bias.normal_()
        model.lm_head.bias[list(tokens)] = value
    return dct.LanguageModel(model, tokenizer, "phi")


def test_damage_where_both_rule_tokens_out(tokenizer, prompts):
    """Against the model's own logits, without those tokens."""
    lm = ruled_out(tokenizer, 7, 11)
    factors = make_factors(3)
    ranking = dct.rank(lm, factors, prompts[:2], prompts[2:])
    ids = tokens(lm, prompts[2:])
    kept = [t for t in range(300) if t not in (7, 11)]
    for ranked in ranking.vectors:
        theta = ranked.scale * factors.V[int(ranked.vector)]
        p, q = (last_logits(lm, ids, added)[:, kept].double().log_softmax(-1) for added in (None, theta))
        assert ranked.effect.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3, abs=1e-7)
        assert ranked.effect.kl > 0
    assert ranking.unsteered.kl == 0
    assert math.isfinite(ranking.random_mean.kl)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_infinite_and_undefined_logits_are_refused_wherever_they_stand(tokenizer, prompts, value):
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        dct.rank(ruled_out(tokenizer, 7, value=value), make_factors(2), prompts[:2], prompts[2:])


def test_a_scored_word_that_is_ruled_out_is_refused(tokenizer, prompts):
    lm = ruled_out(tokenizer)
    positive = words(lm, "Sure", "Sorry").positive[0]
    with pytest.raises(NonFiniteError):
        dct.rank(ruled_out(tokenizer, positive), make_factors(2), prompts)


def test_a_vector_that_makes_a_token_impossible_comes_behind_under_a_bound(plain, prompts):
    effects = [Effect(3.0, 0.0, math.inf), Effect(1.0, 0.0, 0.1)]
    scorer = Scorer(plain, words(plain, "Sure", "Sorry"), 1, prompts[:1], prompts[1:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "effects", lambda self, v, on_rows=None: (effects * len(v))[: len(v)])
        ranking = dct.rank(plain, make_factors(2), prompts[:1], prompts[1:2], max_damage=1e9)
    assert [v.vector for v in ranking.vectors] == ["1", "0"]
    assert json.loads(dumps(ranking.vectors[1].effect.kl)) is None
    assert scorer.unsteered.kl == 0


def test_cost_is_told_before_the_first_vector(plain, prompts):
    told: list[object] = []
    dct.rank(plain, make_factors(4), prompts[:2], prompts[2:], watch=Watch(told.append, told.append))
    cost = told[0]
    assert cost.seconds > 0
    assert cost.peak_memory > cost.more_memory > 0
    assert sum(told[1:]) == 9  # four, as many random ones and the difference of means
