"""Names of directions: against changes computed by hand from a model's own logits, and planted tokens."""

import pytest
import torch
from conftest import DEPTH, WIDTH
from test_ranking import SOURCE, last_logits, tokens
from torch import Tensor

import dct
from dct import naming
from dct.calibration import random_directions
from dct.naming import Name, target_names, vector_names
from dct.nexttoken import NextTokens

PROMPTS = ["How do I bake bread?", "Tell me a story", "pick the moon"]


@pytest.fixture(scope="module")
def lm(make_lm) -> dct.LanguageModel:
    return make_lm("llama")


@pytest.fixture(scope="module")
def near(lm) -> NextTokens:
    return NextTokens(lm, SOURCE, lm.encode(PROMPTS))


def written(lm: dct.LanguageModel, z: Tensor, words: int) -> list[str]:
    """The tokens of the highest z, no two of which differ in spaces and capitals alone."""
    found: list[str] = []
    for token in z.argsort(descending=True).tolist():
        text = lm.decode([token])
        text = text.strip() or repr(text)
        if z[token] > 0 and text.casefold() not in {one.casefold() for one in found}:
            found.append(text)
    return found[:words]


def by_hand(lm: dct.LanguageModel, vectors: Tensor, null: Tensor) -> list[tuple[list[str], list[str]]]:
    """Names from passes with a plain hook, in the model's own precision."""
    ids = tokens(lm, PROMPTS)
    before = last_logits(lm, ids, None).log_softmax(-1)

    def change(vector: Tensor) -> Tensor:
        return (last_logits(lm, ids, vector).log_softmax(-1) - before).mean(0)

    spread = torch.stack([change(v) for v in null]).std(0)
    scale = (spread**2 + spread.median() ** 2).sqrt()
    found = []
    for v in vectors:
        z, after = change(v) / scale, last_logits(lm, ids, v).softmax(-1).mean(0)
        more = torch.where(after >= naming.PLAUSIBLE, z, 0.0)
        less = torch.where(before.exp().mean(0) >= naming.PLAUSIBLE, -z, 0.0)
        found.append((written(lm, more, 5), written(lm, less, 5)))
    return found


def test_names_are_the_largest_changes_in_units_of_chance(lm, near):
    vectors, null = 20.0 * random_directions(4, WIDTH, 1), 20.0 * random_directions(8, WIDTH, 2)
    names = vector_names(near, vectors, null)
    assert [(list(name.more), list(name.less)) for name in names] == by_hand(lm, vectors, null)
    assert all(len(name.more) == 5 for name in names)


def test_tokens_that_are_hardly_ever_said_are_left_out(lm, near, monkeypatch):
    """With a bar that one token alone can pass, names hold that token or nothing."""
    vectors, null = 20.0 * random_directions(4, WIDTH, 1), 20.0 * random_directions(8, WIDTH, 2)
    monkeypatch.setattr(naming, "PLAUSIBLE", 0.5)
    assert all(len(name.more) <= 1 and len(name.less) <= 1 for name in vector_names(near, vectors, null))


def test_a_vector_that_plants_a_token_is_named_by_it(lm, near):
    """Added behind the last block but one, a row of the head makes its own token likelier."""
    head = lm.model.get_output_embeddings().weight.detach().float()
    token = 65
    late = NextTokens(lm, DEPTH - 1, lm.encode(PROMPTS))
    push = 200.0 * head[[token]] / head[token].norm()
    [name] = vector_names(late, push, 20.0 * random_directions(8, WIDTH, 2))
    assert name.more[0] == lm.decode([token]).strip()
    [pointed] = target_names(lm, head[[token]], DEPTH, lm.encode(PROMPTS))
    assert pointed.more[0] == lm.decode([token]).strip()


@pytest.mark.parametrize("target", [3, DEPTH])
def test_target_names_are_those_of_the_derivative(lm, target):
    """The derivative of the last stream by central differences of the model's own run, that of norm and head by
    autograd, in float64 of the float32 model."""
    U = random_directions(3, WIDTH, 5)
    rows = lm.encode(PROMPTS)
    null = random_directions(naming.NULL, WIDTH, 3)  # seed + 3
    norm, head = lm.model.model.norm, lm.model.get_output_embeddings()

    def last(row: list[int], push: Tensor | None) -> Tensor:
        handle = None
        if push is not None and target < DEPTH:
            block = lm.layers[target]
            handle = block.register_forward_pre_hook(lambda _, args: (args[0] + push, *args[1:]))
        seen = []
        keep = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1].detach()))
        with torch.no_grad():
            lm.model(torch.tensor([row]), use_cache=False)
        keep.remove()
        if handle is not None:
            handle.remove()
        return seen[0]

    def moved(u: Tensor) -> Tensor:
        if target < DEPTH:
            w = torch.stack([(last(row, 1e-2 * u) - last(row, -1e-2 * u)) / 2e-2 for row in rows]).mean(0)
        else:
            w = u
        w = w / w.norm()
        found = []
        for row in rows:
            h = last(row, None)
            found.append(h.norm() * torch.func.jvp(lambda x: head(norm(x)), (h,), (w,))[1].detach())
        g = torch.stack(found).mean(0)
        return g - g.mean()

    spread = torch.stack([moved(u) for u in null]).std(0)
    scale = (spread**2 + spread.median() ** 2).sqrt()
    for name, u in zip(target_names(lm, U, target, rows), U, strict=True):
        z = moved(u) / scale
        for got, wanted in ((name.more, z), (name.less, -z)):
            best = written(lm, wanted, 8)
            assert set(got) <= set(best)  # order may differ by rounding where two are close
            assert got[0] in best[:2]


def test_spaces_and_capitals_make_no_second_word(lm):
    z = torch.zeros(lm.vocabulary)
    texts = {lm.decode([k]): k for k in range(lm.vocabulary)}
    pair = next((a, a.upper()) for a in texts if a.islower() and a.upper() in texts)
    z[texts[pair[0]]], z[texts[pair[1]]] = 2.0, 1.0
    assert naming._tokens(lm, z, 5) == (pair[0],)
    assert Name(("a",), ()).less == ()
