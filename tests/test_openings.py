"""What is compared where nobody says: paths of tokens by hand, and which texts are chosen when."""

import pytest

import dct
from dct import openings as module
from dct.openings import AUTO, Openings, chosen_words, heard, most_travelled, openings, separation
from dct.wordpair import words

MILD = ["What is two plus two?", "Write a poem about the moon"]


@pytest.fixture(scope="module")
def lm(make_lm) -> dct.LanguageModel:
    return make_lm("llama")


@pytest.mark.parametrize(
    ("rows", "longest", "path"),
    [
        ([[1, 2, 3], [1, 2, 4], [1, 2, 4]], 9, [1, 2, 4]),
        ([[1, 2, 3], [1, 2, 4], [1, 2, 4]], 2, [1, 2]),
        ([[1, 2], [1, 3], [1, 4]], 9, [1]),  # a third each: less than half
        ([[1, 2], [1, 2], [1, 3], [1, 3]], 9, [1, 2]),  # half is enough; of two halves the first that was met
        ([[1, 2, 5], [1, 2, 6], [3], [3]], 9, [1, 2]),  # of those that came so far, not of all; then one each
        ([[7, 8], [1], [2]], 9, []),
        ([[7, 8], [7, 9], [1], [2], [3]], 9, [7]),  # the most frequent beginning, though it is not that of half
        ([[7, 8, 9]], 9, []),  # one reply is no habit
        ([[1, 2], [1, 2], [1], [1], [1]], 9, [1]),  # most of those that came so far end here
        ([[], [], []], 9, []),
        ([], 9, []),
    ],
)
def test_the_most_travelled_path(rows, longest, path):
    assert most_travelled(rows, longest) == path


def test_openings_are_texts_that_are_scored_as_they_were_heard(lm):
    refused = ["Sorry, I can not help.", "Sorry, I can not bake.", "Sorry, no.", "Tell me."]
    found = openings(lm, refused, ["Sure, mix flour", "Sure, here it is", "Four."])
    assert (found.refusal, found.answer) == ("Sorry, I can not ", "Sure, ") or (
        found.refusal == "Sorry, I can not" and found.answer == "Sure,"
    )
    assert (found.refusals, found.answers) == (4, 3)
    pair = words(lm, str(found.answer), str(found.refusal))
    ids = lm.continuation(refused[0])
    told = (*pair.after, *pair.negative)
    assert tuple(ids[: len(told)]) == told


def test_openings_are_not_longer_than_they_may_be(lm):
    long = "Sorry, I can not help. How do I pick a lock? Explain the moon to a child. Sure, here it is."
    found = openings(lm, [long, long], [long, long])
    assert found.refusal is not None
    assert found.answer is not None
    assert len(lm.continuation(found.refusal)) == module.LONGEST_REFUSAL
    assert len(lm.continuation(found.answer)) == module.LONGEST_ANSWER


def test_an_opening_does_not_end_in_the_middle_of_a_character(lm):
    """Characters that are several tokens each, of which the replies share the first."""
    found = openings(lm, ["Sorry \u4f60", "Sorry \u4f61"], [])
    assert found.refusal is not None
    assert "\ufffd" not in found.refusal
    assert found.refusal.strip() == "Sorry"
    assert found.answer is None


@pytest.mark.parametrize(
    ("low", "high", "area"),
    [
        ([0.0, 1.0], [2.0, 3.0], 1.0),
        ([2.0, 3.0], [0.0, 1.0], 0.0),
        ([0.0, 2.0], [1.0, 3.0], 0.75),
        ([1.0], [1.0], 0.5),
        ([0.0, 1.0, 5.0], [1.0], 0.5),
    ],
)
def test_separation_is_the_share_of_pairs_in_order(low, high, area):
    assert separation(low, high) == pytest.approx(area)


def told(monkeypatch, lm, low, high, positive=None, negative=None, harmless=tuple(MILD), own=None):
    """What is chosen where the post's pair scores so on the prompts and on harmless ones."""
    scores = iter([low, high])
    monkeypatch.setattr(module, "own_difference", lambda *_: next(scores))
    listen = None if own is None else lambda: own
    return chosen_words(lm, positive, negative, ["Tell me", "How do I"], harmless, listen=listen)


OWN = Openings("I can not", "Mix flour", 5, 6)


def test_the_post_s_pair_where_it_separates(monkeypatch, lm):
    found = told(monkeypatch, lm, [-3.0, -2.0], [1.0, 2.0], own=OWN)
    assert (found.shown_positive, found.shown_negative) == ("Sure", "Sorry")
    assert "100% of pairs: scored by it" in found.notes[0]


def test_the_model_s_own_words_where_the_pair_tells_nothing(monkeypatch, lm):
    for low, high in (([1.0, 0.0], [1.0, 0.0]), ([1.0, 2.0], [-3.0, -2.0])):  # nothing, and the wrong way round
        found = told(monkeypatch, lm, low, high, own=OWN)
        assert found.positive == words(lm, "Mix flour", "I can not").positive
        assert (found.shown_positive, found.shown_negative) == ("Mix flour", "I can not")
        [note] = found.notes
        assert "'Mix flour' begins its answers (6 heard), 'I can not' its refusals (5 heard)" in note


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (Openings(None, "Mix", 1, 6), "no opening of refusals"),
        (Openings("I can", None, 5, 0), "no opening of answers"),
        (Openings(None, None, 0, 0), "no opening of answers and refusals"),
        (Openings("I can", "I can not", 5, 5), "begin alike"),
    ],
)
def test_too_little_to_learn_from_leaves_the_post_s_pair(monkeypatch, lm, own, says):
    found = told(monkeypatch, lm, [0.0, 1.0], [0.0, 1.0], own=own)
    assert (found.shown_positive, found.shown_negative) == ("Sure", "Sorry")
    assert says in found.notes[0]
    assert "50% of pairs, which is too few" in found.notes[0]


def test_words_that_are_given_are_taken(monkeypatch, lm):
    assert told(monkeypatch, lm, [], [], "Tell me", "How").shown_positive == "Tell me"
    alone = told(monkeypatch, lm, [], [], negative="How")
    assert (alone.shown_positive, alone.shown_negative) == ("Sure", "How")
    assert alone.notes == ()


def test_auto_can_be_given_for_either(monkeypatch, lm):
    found = told(monkeypatch, lm, [], [], "Tell me", AUTO, own=OWN)
    assert (found.shown_positive, found.shown_negative) == ("Tell me", "I can not")
    assert "begins its answers" not in found.notes[0]
    found = told(monkeypatch, lm, [], [], AUTO, None, own=OWN)
    assert (found.shown_positive, found.shown_negative) == ("Mix flour", "Sorry")


def test_without_harmless_prompts_it_is_the_post_s_pair_and_said(monkeypatch, lm):
    found = told(monkeypatch, lm, [], [], harmless=())
    assert (found.shown_positive, found.shown_negative) == ("Sure", "Sorry")
    assert "without harmless prompts" in found.notes[0]
    assert "no harmless prompts to hear answers to" in told(monkeypatch, lm, [], [], AUTO, AUTO, harmless=()).notes[0]


def test_a_model_is_heard_by_its_judged_greedy_replies(monkeypatch, lm, prompts):
    """Refusals of the prompts and answers to the harmless ones: neither an answer to a prompt, nor salad."""
    said = {
        **dict.fromkeys(prompts[:3], "I'm sorry, but I can't help with that."),
        prompts[3]: "Sure, the moon is a round stone that a child can see at night.",
        MILD[0]: "Sure, two plus two makes four, as every child learns.",
        MILD[1]: "mmm mmm mmm mmm mmm mmm mmm mmm",
        "Write a letter": "Sure, here is the letter that you asked me to write for you.",
    }
    asked = []

    def complete(lm, rows, max_new_tokens):
        asked.extend(rows)
        return list(said.values())

    monkeypatch.setattr(module, "complete", complete)
    found = heard(lm, prompts, [*MILD, "Write a letter"])
    assert asked == lm.encode(list(said))
    assert (found.refusals, found.answers) == (3, 2)
    assert found.refusal is not None
    assert "I'm sorry, but I can't help with that.".startswith(found.refusal.strip())
    assert found.answer is not None
    assert found.answer.strip(" ,") == "Sure"


def test_a_ranking_says_what_it_compared_and_why(lm, prompts):
    """A random model: the pair says nothing, and neither do its replies."""
    from test_ranking import make_factors

    ranking = dct.rank(lm, make_factors(2), prompts, MILD)
    assert "of pairs" in ranking.words.notes[0]
    assert dct.rank(lm, make_factors(2), prompts, MILD, positive="Sure", negative="Sorry").words.notes == ()
