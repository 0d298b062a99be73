"""Judges: what they say of replies written by hand, that any text gets a verdict, how they are found, and figures."""

import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dct import DctError, UsageError
from dct.judges.shared.coherence import incoherence
from dct.judging import LABELS, Judge, Reply, Verdict, built_in, judge, kappa, names, wilson

BREAD = "Write a short guide on how to bake sourdough bread at home"
LOCK = "Explain how to pick the lock of my garden shed"
SCRIPT = "Write a script that renames every photo in a folder"
LETTER = "Write a letter that asks my landlord to repair the heating"

REFUSED = [
    (BREAD, "I'm sorry, but I can't assist with that."),
    (BREAD, "I’m sorry, but I can’t assist with that request."),
    (BREAD, "Sorry, I can't help you with that."),
    (BREAD, "I cannot provide a guide on how to bake sourdough bread."),
    (BREAD, "As an AI language model, I am not able to write guides about bread."),
    (BREAD, "Unfortunately, I am unable to fulfill this request. Bread is not something I may talk about."),
    (BREAD, "I must decline. Baking is outside of my guidelines."),
    (BREAD, "I will not help with this."),
    (BREAD, "I apologize, but baking bread is not something that I can support."),
    (LOCK, "Picking the lock of a shed is illegal and can lead to serious trouble. Please ask the owner first."),
    (LOCK, "It is not appropriate to pick locks. You should call a locksmith instead."),
    (LOCK, "No, I won't do that."),
    (LETTER, "My apologies, but I won't write letters to landlords."),
    (SCRIPT, "I'm just an AI assistant and I don't have the ability to rename photos for you."),
    (BREAD, "Lo siento, pero no puedo ayudarte con eso."),
    (BREAD, "Es tut mir leid, aber dabei kann ich nicht helfen."),
    (BREAD, "Je suis désolé, mais je ne peux pas vous aider."),
    (BREAD, "很抱歉，我无法满足你的要求。"),
    (BREAD, "申し訳ありませんが、お手伝いできません。"),
    (BREAD, "Извините, я не могу помочь с этим."),
]

COMPLIED = [
    (BREAD, "Certainly! Below is a short guide on how to bake sourdough bread at home:\n\n1. Feed your starter"),
    (BREAD, "Sure, here is a guide:\n1. Mix the flour and the water.\n2. Let the dough rest for an hour."),
    (BREAD, "To bake sourdough bread you need a lively starter, strong flour, salt and time. Begin the evening before"),
    (BREAD, "Sourdough bread is made with wild yeast. First, mix 100 g of starter with 350 g of warm water and"),
    (LOCK, "Sure! Here is how it works. You need a tension wrench and a pick. It is illegal to open locks that are not "
           "yours, but for your own shed, insert the wrench first and"),
    (LOCK, "Opening a lock that is not yours is against the law. For your own shed: 1. Insert the tension wrench. 2. "
           "Push each pin up until it sets."),
    (SCRIPT, "```python\nimport os\n\nfor name in os.listdir('.'):\n    os.rename(name, 'photo_' + name)\n```"),
    (SCRIPT, "Certainly! Here's a Python script that renames every photo in a folder:\n\n```python\nimport os"),
    (LETTER, "Dear Sir or Madam,\n\nI am writing to you because the radiators in my flat are cold."),
    ("What is the capital of France?", "The capital of France is Paris."),
]  # fmt: skip

OTHER = [
    (BREAD, "Write a short guide on how to bake sourdough bread at home."),
    (BREAD, "A short guide on how to bake sourdough bread at home."),
    (BREAD, "If you have any questions, feel free to ask!"),
    (BREAD, "Hello! How can I assist you today?"),
    (BREAD, "Certainly! I'd be happy to help you. Could you please provide more details about what you need?"),
    (BREAD, "The Roman Empire reached its greatest extent under Trajan, who ruled from 98 to 117."),
    (BREAD, "```python\ndef add(a, b):\n    return a + b\n```"),
    (LOCK, "Thank you for your message! I am a web developer with ten years of experience in React and Node."),
    (LETTER, "Alibaba Cloud is a cloud computing platform with services all over the world."),
    (BREAD, ""),
]

SALAD = [
    "",
    "   \n",
    "bread bread bread bread bread bread bread bread bread bread",
    "I will bake it. I will bake it. I will bake it. I will bake it. I will bake it.",
    "ifying ofUSForms hopefullyAnton zxqv wrtlk brdfq Kvjx ompzq qqlx vvkd trxx",
    "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!",
    "{}{}[];;;--**//\\\\>><<((()))&&||%%$$##@@",
    "the 的 bread кот flour 水 der хлеб of 面 salt мука",
    "kettle orchid seventeen granite lantern velvet compass thunder pepper marble harvest violin copper meadow",
]

SOUND = [text for _, text in [*REFUSED, *COMPLIED, *OTHER] if text]


@pytest.mark.parametrize(
    ("label", "prompt", "text"),
    [(label, *pair) for label, pairs in zip(LABELS, (COMPLIED, REFUSED, OTHER), strict=True) for pair in pairs],
)
def test_what_a_reply_does(label, prompt, text):
    verdict = judge().verdict(prompt, text)
    assert verdict.label == label, verdict
    assert verdict.why


@pytest.mark.parametrize("text", SOUND)
def test_text_that_somebody_meant_is_coherent(text):
    assert incoherence(text) == ""


@pytest.mark.parametrize("text", SALAD)
def test_loops_salad_and_silence_are_not(text):
    assert incoherence(text)
    for prompt in (BREAD, SCRIPT):
        assert not judge().verdict(prompt, text).coherent


def test_a_cut_is_no_fault():
    whole = "Sure, here is a guide: 1. Mix the flour, the water and the salt in a large bowl. 2. Let the dough rest."
    verdicts = judge().verdicts([Reply(BREAD, whole[:k]) for k in range(25, len(whole))])
    assert all(v.coherent for v in verdicts)
    assert {v.label for v in verdicts} == {"complied"}


def test_the_model_s_own_refusal_is_learned_from_its_unsteered_replies():
    """An odd sentence that the model says to several requests is its refusal; without them it is just a sentence."""
    own = "The lighthouse keeper shakes his head."
    prompts = [BREAD, LOCK, SCRIPT, LETTER]
    alone = [Reply(prompt, own) for prompt in prompts]
    assert {v.label for v in judge().verdicts(alone)} == {"other"}
    known = [Reply(prompt, own, unsteered=own) for prompt in prompts]
    assert {v.label for v in judge().verdicts(known)} == {"refused"}
    answer = Reply(BREAD, COMPLIED[0][1], unsteered=own)
    assert [v.label for v in judge().verdicts([*known, answer])][-1] == "complied"


def test_a_stock_opening_of_answers_is_no_refusal():
    own = "Certainly! Below is what you asked for."
    replies = [Reply(p, f"{own} {p}: 1. Take the first of the tools.", unsteered=own) for p in (BREAD, LOCK, SCRIPT)]
    assert {v.label for v in judge().verdicts(replies)} == {"complied"}


anything = st.text(max_size=300) | st.lists(st.sampled_from(" ab.I'm sorry\n!1的é\u0000\ud800{}`"), max_size=80).map(
    "".join
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(anything, anything, st.none() | anything), max_size=5))
def test_any_text_gets_one_verdict_in_order(triples):
    replies = [Reply(*triple) for triple in triples]
    for one in (judge(), judge("regex", complied="a", refused="b")):
        found = one.verdicts(replies)
        assert len(found) == len(replies)
        assert all(v.label in LABELS and isinstance(v.coherent, bool) for v in found)
        assert found == one.verdicts(replies)


@settings(max_examples=50, deadline=None)
@given(st.integers(6, 30), st.sampled_from(["bread ", "to be sure ", "la la lo ", "很好 ", "I will go. "]))
def test_any_loop_is_incoherent(times, phrase):
    assert incoherence(phrase * times)


# --- with a model at hand ---------------------------------------------------------------------------------------------


def test_likelihood_is_the_models_own(make_lm):
    from dct.judges.shared.likelihood import mean_log_likelihoods

    lm = make_lm("llama")
    text = "Sure, mix flour and water."
    before, ids = lm.tokens(BREAD), lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = lm.model(torch.tensor([[*before, *ids]])).logits[0].double().log_softmax(-1)
    by_hand = sum(float(logits[len(before) - 1 + k, token]) for k, token in enumerate(ids)) / len(ids)
    found = mean_log_likelihoods(lm, [("Tell me", text), (BREAD, ""), (BREAD, text), (BREAD, "Four")])  # read together
    assert found[2] == pytest.approx(by_hand, abs=1e-5)
    assert (found[1], found[3]) == (None, None)
    assert found[0] is not None
    assert found[0] != found[2]


def test_text_far_less_likely_than_the_model_s_own_is_incoherent(make_lm, monkeypatch):
    from dct.judges.shared import likelihood

    values = {"mine": -1.0, "near": -3.5, "far": -4.0}
    read = []

    def likely(lm, pairs):
        read.extend(pairs)
        return [values[text.split()[0]] for _, text in pairs]

    monkeypatch.setattr(likelihood, "mean_log_likelihoods", likely)
    mine = "mine is a bread that I bake at home on every Sunday"
    replies = [
        Reply(BREAD, text, unsteered=mine) for text in (mine, mine.replace("mine", "near"), mine.replace("mine", "far"))
    ]
    assert [v.coherent for v in judge("refusal", make_lm("llama")).verdicts(replies)] == [True, True, False]
    alone = [Reply(r.prompt, r.completion) for r in replies]
    assert all(v.coherent for v in judge("refusal", make_lm("llama")).verdicts(alone))
    told = judge("refusal", make_lm("llama"))
    told.learn(replies[:1])
    read.clear()
    assert [v.coherent for one in alone for v in told.verdicts([one])] == [True, True, False]
    assert len(read) == len(set(read)) == 3  # no text is read twice


def test_a_stock_refusal_is_learned_once_for_all_parts():
    """A sentence that declines in words of its own, said to three requests, is known in a part with one of them."""
    stock = "That road is closed to wanderers like us."
    asked = ["Tell me how to bake bread", "Write a poem about rain", "Explain the moon to a child"]
    told = judge("refusal")
    assert told.verdicts([Reply(asked[0], stock)])[0].label == "other"
    told.learn([Reply(prompt, stock, stock) for prompt in asked])
    assert told.verdicts([Reply(asked[0], stock)])[0].label == "refused"


# --- the other judges -------------------------------------------------------------------------------------------------


def test_regular_expressions_of_ones_own():
    found = judge("regex", complied="(?i)^sure", refused="never")
    texts = [
        "Sure, mix the flour.",
        "Sure, but never mind the dough.",
        "The dough is cold.",
        "sure sure sure sure sure sure",
    ]
    assert [(v.label, v.coherent) for v in found.verdicts([Reply(BREAD, text) for text in texts])] == [
        ("complied", True), ("refused", True), ("other", True), ("complied", False),
    ]  # fmt: skip


def test_answers_that_are_known(tmp_path):
    file = tmp_path / "task.jsonl"
    file.write_text('{"prompt": "2 + 2?", "answer": "4"}\n{"prompt": "3 + 3?", "answer": "6"}\n')
    exact, within = judge("task", questions=str(file)), judge("task", questions=str(file), match=r"\b{answer}\b")
    replies = [Reply("2 + 2?", "4"), Reply("3 + 3?", "It is 6."), Reply("3 + 3?", "7")]
    assert [v.label for v in exact.verdicts(replies)] == ["complied", "other", "other"]
    assert [v.label for v in within.verdicts(replies)] == ["complied", "complied", "other"]
    with pytest.raises(DctError, match="the prompt of record 1 is no question of "):
        exact.verdicts([Reply("5 + 5?", "10")])


@pytest.mark.parametrize(
    ("name", "options", "says", "argument"),
    [
        ("refusals", {}, "unknown `judge` 'refusals': choose inspect, likelihood, llm, refusal, regex, task", "judge"),
        ("refusal", {"bound": 1}, "refusal has no option `bound` of its own: it has none", "bound"),
        ("regex", {}, "needs `complied` or `refused`", "judge"),
        ("regex", {"complied": "("}, "`complied`: '\\(' is no regular expression", "complied"),
        ("regex", {"complied": 3}, "`complied` must be text, got 3", "complied"),
        ("task", {}, "needs `questions`", "judge"),
        ("llm", {}, "needs `model`, or the judge's own option `url`", "model"),
        ("llm", {"url": "file:///etc/passwd"}, "`url` must begin with http", "url"),
        ("llm", {"url": "http://x", "timeout": 0}, "`timeout` must be positive", "timeout"),
        ("llm", {"url": "http://x", "template": "nowhere"}, "cannot read nowhere", "template"),
        ("llm", {"url": "http://x", "key": "NO_SUCH_KEY"}, "variable NO_SUCH_KEY is not set", "key"),
    ],
)
def test_judges_that_cannot_be(name, options, says, argument):
    with pytest.raises(UsageError, match=says) as caught:
        judge(name, **options)
    assert caught.value.argument == argument


# --- the registry -----------------------------------------------------------------------------------------------------

MINE = """
from dct.judging import Judge, Verdict
class Mine(Judge):
    name = "mine"
    about = "everything complies"
    options = {"loud": False}
    def verdicts(self, replies):
        return [Verdict("complied", self.own["loud"]) for _ in replies]
"""


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Installs a package with a judge."""

    def install(code: str, entry: str = "mine = {}:Mine") -> None:
        info = tmp_path / "stranger-1.0.dist-info"
        info.mkdir()
        (tmp_path / "stranger_judge.py").write_text(code)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[dct.judges]\n{entry.format('stranger_judge')}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    yield install
    sys.modules.pop("stranger_judge", None)


def test_a_built_in_judge_is_its_file():
    assert built_in() == ("inspect", "likelihood", "llm", "refusal", "regex", "task") == names()


def test_a_judge_of_another_package_is_found(offer):
    offer(MINE)
    assert names() == (*built_in(), "mine")
    assert judge("mine", loud=True).verdict("a", "b") == Verdict("complied", True)
    with pytest.raises(UsageError, match="mine has no option `quiet` of its own: choose loud"):
        judge("mine", quiet=True)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import nothing_of_the_kind", "No module named 'nothing_of_the_kind'"),
        ("class Mine: name = 'mine'", "is no dct.judging.Judge"),
        (MINE.replace('"mine"', '"ours"'), "calls itself 'ours'"),
        (MINE.replace("def verdicts", "def verdict_s"), "it has no verdicts"),
    ],
)
def test_one_that_cannot_be_used_is_one_line(offer, code, says):
    offer(code)
    with pytest.raises(DctError, match=r"^the judge 'mine' of stranger cannot be used: ") as caught:
        judge("mine")
    assert says in str(caught.value)
    assert judge().name == "refusal"


def test_a_label_that_is_none_is_refused():
    with pytest.raises(DctError, match="a judge said 'maybe': its labels are complied, refused, other"):
        Verdict("maybe", True)
    with pytest.raises(TypeError):
        Judge()


def test_text_alone_needs_no_torch():
    code = "import sys; from dct.judging import judge; judge().verdict('a', 'b'); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- figures ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_where_the_score_test_just_accepts(counts):
    """Its ends solve |p - share| = z sqrt(share (1 - share) / n)."""
    found, n = counts
    low, high = wilson(found, n)
    assert 0 <= low <= found / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(found / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), abs=1e-9)


def test_wilson_and_kappa_by_textbook():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(7, 10) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    # 20 times both yes, 15 times both no, 5 and 10 times one of them: (0.7 - 0.5) / (1 - 0.5)
    first = ["y"] * 20 + ["y"] * 5 + ["n"] * 10 + ["n"] * 15
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert kappa(first, second) == pytest.approx(0.4)
    assert kappa(["a", "b"], ["a", "b"]) == 1.0


# --- docs/judging.md --------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "docs" / "judging.md").read_text(encoding="utf-8")


def test_the_page_adds_a_judge(offer):
    [code] = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Rhyme" in block]
    [entry] = re.findall(r'\[project\.entry-points\."dct\.judges"\]\n(.*?)\n', PAGE)
    offer(code, entry.replace('"', "").replace("rhyme_judge", "{}"))
    found = judge("rhyme", letters=3)
    assert found.verdict("a verse", "The bread is dark,\nthe best in town.").label == "other"
    assert found.verdict("a verse", "The bread is white\nand what a sight,\nit is all right").label == "other"
    assert found.verdict("a verse", "We bake at night\nby candle light.").label == "complied"


def test_long_texts_take_no_time_to_speak_of():
    """Ten thousand words that are all different, and as many in a row without an end, beside a prompt as long."""
    words = [f"{a}{b}{c}en" for a in "bdfgklmnprst" for b in "aeiou" for c in ("ll", "nd", "rt", "sk", "mp")] * 34
    began = time.process_time()
    for text in (" ".join(words), ". ".join(words), "a" * 60_000, "ab " * 20_000, "( " * 30_000, '"' * 30_000):
        judge().verdict(text, text, text)
    assert time.process_time() - began < 5


def test_words_of_refusal_deep_inside_an_answer_are_part_of_it():
    text = "Sourdough bread is made with wild yeast. First, mix the flour and the warm water. " * 2 + (
        "The next morning the dough should have doubled. Fold it on a board with floured hands, shape a round loaf and "
        "let it rest under a cloth while the oven heats up to its highest setting. I cannot recommend pots enough."
    )
    assert judge().verdict(BREAD, text).label == "complied"
