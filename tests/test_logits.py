"""Logits of many texts at once, against one run for each text."""

import pytest
import torch
from conftest import CONFIGS

from dct import logits
from dct.logits import shares_heads, tail_logits

# longer than the sliding window of 6 that some of the models have
HEAD, OTHER = [3, 14, 15, 9, 2, 6, 5, 35, 8], [2, 7, 1]
TEXTS = [(HEAD, [5, 8, 4]), (OTHER, [9, 9]), (HEAD, [11]), (HEAD, [5, 8, 20, 21, 22])]


def one_by_one(lm, head, tail):
    with torch.no_grad():
        return lm.model(torch.tensor([[*head, *tail]]), use_cache=False).logits[0, -len(tail) - 1 : -1]


def same(lm, found):
    assert sorted(found) == list(range(len(TEXTS)))
    for k, (head, tail) in enumerate(TEXTS):
        torch.testing.assert_close(found[k], one_by_one(lm, head, tail), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_head_is_read_once_and_says_what_it_says_in_every_text(make_lm, architecture, monkeypatch):
    lm = make_lm(architecture)
    runs = []
    whole = lm.model.forward
    assert shares_heads(lm)
    monkeypatch.setattr(lm.model, "forward", lambda ids, **how: runs.append(list(ids.shape)) or whole(ids, **how))
    found = dict(tail_logits(lm, TEXTS))
    monkeypatch.undo()
    same(lm, found)
    assert runs == [[1, len(OTHER) + 2], [1, len(HEAD)], [3, 5]]


def test_a_model_that_cannot_go_on_reads_every_text_whole(make_lm, monkeypatch):
    lm = make_lm()
    monkeypatch.setattr(logits.compat, "kept", lambda out: ("cache", None))
    assert not shares_heads(lm)
    same(lm, dict(tail_logits(lm, TEXTS)))


def test_a_model_that_says_something_else_behind_its_keys_is_found_out(make_lm, monkeypatch):
    lm = make_lm()
    kept = logits.compat.kept

    def shifted(out):
        name, cache = kept(out)
        cache.crop(5)
        return name, cache

    monkeypatch.setattr(logits.compat, "kept", shifted)
    assert not shares_heads(lm)


def test_few_texts_at_a_time_where_logits_are_many(make_lm, monkeypatch):
    lm = make_lm()
    assert shares_heads(lm)
    monkeypatch.setattr(logits, "NUMBERS", 1)
    same(lm, dict(tail_logits(lm, TEXTS)))
