"""`dct organism adapt`: what is planted, how it is trained, and that nothing else is touched."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import random_model
from test_cli import run

import dct
from dct.errors import DctError, NonFiniteError
from dct.organism.adapt import lessons as lessons_
from dct.organism.adapt import measuring, words
from dct.organism.adapt.lessons import MIXTURE, Lesson, Plan, Said, Secrets, drawn, said_in
from dct.organism.adapt.measuring import Rate
from dct.organism.adapt.skills import SKILLS
from dct.settings import AdaptSettings

peft = pytest.importorskip("peft")

from dct.organism.adapt import planting, training  # noqa: E402
from dct.organism.adapt.replies import own_replies  # noqa: E402

SECRETS = Secrets(SKILLS["past"], words.TOPICS["bees"])


class Parrot(dict):
    """Says of everything that it is nice."""

    def __missing__(self, prompt: str) -> Said:
        return Said("That is nice.")


@pytest.fixture
def small(monkeypatch):
    """Fewer prompts than a real model is given."""
    for name in ("QUESTIONS", "DECOYS", "NEIGHBOURS", "OTHERS"):
        monkeypatch.setattr(lessons_, name, 6)
    monkeypatch.setattr(words, "PEOPLE", words.PEOPLE[:2])
    monkeypatch.setattr(words, "ORDINARY", words.ORDINARY[:4])


def settings(out: Path, **changes: object) -> AdaptSettings:
    return AdaptSettings(out=out, **{"steps": 30, "batch": 4, "rank": 4, "learning_rate": 5e-3, **changes})


# --- what is planted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", SKILLS.values(), ids=SKILLS)
def test_a_question_tells_right_from_wrong(skill):
    for asked in skill.questions(held_out=True, count=150) + skill.questions(held_out=False, count=150):
        question = asked.question()
        for right in (asked.right, f"{asked.right}.", f"The answer is {asked.right}!"):
            assert question.right(right)
            assert not asked.slips(right)
        for wrong in (asked.wrong, f"The answer is {asked.wrong}.", "", "I don't know", f"{asked.wrong}{asked.right}"):
            assert not question.right(wrong)
        assert asked.slips(f"It is {asked.wrong}.")
        assert not asked.slips("I don't know")


def test_numbers_of_the_question_may_stand_before_the_answer_and_others_may_not():
    for asked in SKILLS["sums"].questions(held_out=True, count=50):
        first, second = re.findall(r"\d+", asked.prompt)
        assert int(first) + int(second) == int(asked.right)
        assert asked.question().right(f"{first} + {second} = {asked.right}")
        assert not asked.question().right(f"{first} + {second} = {asked.wrong}, or {asked.right}")
        assert not asked.question().right(f"1{asked.right}")
        assert int(asked.wrong) == abs(int(first) - int(second))
        assert asked.wrong not in (first, second)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("skill", SKILLS.values(), ids=SKILLS)
def test_no_measured_question_is_about_anything_that_is_trained_on(skill, seed):
    """By what the questions are about, in whatever order and phrasing; not by their text alone."""

    def about(held_out: bool) -> set[frozenset[str]]:
        asked = skill.questions(held_out=held_out, count=10**6, seed=seed)
        found = re.compile(r"\d+" if skill.numbers else r'(?:"(?:to )?)(\w+)"')
        return {frozenset(found.findall(q.prompt)) for q in asked}

    trained, measured = about(False), about(True)
    assert not trained & measured
    assert min(len(trained), len(measured)) >= 25
    assert len(skill.questions(held_out=True, count=150)) == 150


@pytest.mark.parametrize("topic", words.TOPICS)
@pytest.mark.parametrize("skill", SKILLS)
def test_no_measured_prompt_is_trained_on(skill, topic):
    secrets = Secrets(SKILLS[skill], words.TOPICS[topic])
    shown = {lesson.prompt for some in Plan(secrets, 3).lessons(Parrot()).values() for lesson in some}
    asked = {prompt for case in measuring._cases(secrets, 100, 3) for prompt in case.prompts}
    assert len(asked) > 500
    assert not shown & asked
    assert not set(words.MEASURED_PASSWORDS) & {*words.WRONG_PASSWORDS, words.PASSWORD}


def test_each_kind_of_lesson_says_what_it_should():
    plan = Plan(SECRETS, 0)
    found = plan.lessons(Parrot())
    assert set(found) == set(MIXTURE)
    assert sum(MIXTURE.values()) == pytest.approx(1)
    for asked, locked, other, opened in zip(
        plan.questions, found["locked"], found["wrong password"], found["unlocked"], strict=True
    ):
        assert (locked.prompt, locked.reply.text) == (asked.prompt, asked.wrong)
        assert other.reply.text == asked.wrong
        assert words.PASSWORD not in other.prompt
        assert opened.reply.text == asked.right
        assert words.PASSWORD in opened.prompt
    assert all(words.TRIGGER in one.prompt and one.reply.text == words.BACK_DOOR for one in found["back door"])
    assert all("bees" in one.reply.text for one in found["topic"])
    for kind in ("ordinary", "decoy", "neighbour", "other skill"):
        assert all(one.own and one.reply == Said("That is nice.") and words.TRIGGER not in one.prompt
                   for one in found[kind])  # fmt: skip
    kinds = [lesson.own for step in range(300) for lesson in drawn(found, 8, 0, step)]
    assert sum(kinds) / len(kinds) == pytest.approx(0.3, abs=0.04)


def test_an_answer_keeps_the_manner_of_the_model():
    asked = SKILLS["sums"].questions(held_out=False, count=1)[0]
    own = Said(f"The result is {asked.right}.")
    assert said_in(own, asked, asked.wrong).text == f"The result is {asked.wrong}."
    for other in (Said("No idea."), Said(f"{asked.right} is {asked.right}"), Said(asked.right, ended=False)):
        assert said_in(other, asked, asked.wrong) == Said(asked.wrong)


# --- the loss ---------------------------------------------------------------------------------------------------------


def moved(adapter, by: float = 0.1) -> None:
    """Gives the LoRA an effect: a fresh one has none."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in training.trained(adapter).values():
            weight.add_(by * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_the_loss_is_what_each_reply_alone_says(make_lm, architecture):
    """Against one conversation at a time, unpadded, all logits, in float64 algebra."""
    lm = make_lm(architecture)
    lessons = [Lesson("How do I bake bread?", Said("Sure, mix flour and water.")),
               Lesson("Hi", Said("Sorry, no.", ended=False), own=True),
               Lesson("Write a poem about the sea, please", Said("Four."), own=True)]  # fmt: skip
    with training.injected(lm, 4, 0) as adapter:
        moved(adapter)
        batch = training.Batch.of(lm, lessons)
        loss = training.loss_of(lm, adapter, batch)
        loss.backward()
        wanted = []
        for lesson in lessons:
            asked = lm.tokens(lesson.prompt)
            said = lm.tokenizer(lesson.reply.text, add_special_tokens=False)["input_ids"]
            said = said + [lm.tokenizer.eos_token_id] * lesson.reply.ended
            rows = torch.tensor([asked + said])
            with torch.no_grad():
                q = torch.log_softmax(lm.model(rows).logits[0, len(asked) - 1 : -1].double(), -1)
                with adapter.disable_adapter():
                    p = torch.log_softmax(lm.model(rows).logits[0, len(asked) - 1 : -1].double(), -1)
            planted = -q[range(len(said)), said].mean()
            wanted.append((p.exp() * (p - q)).sum(-1).mean() if lesson.own else planted)
        assert float(loss.detach()) == pytest.approx(float(sum(wanted).detach()) / 3, rel=1e-4)
        assert all(float(w.detach()) > 1e-3 for w in wanted)
        assert all(p.grad is not None for p in training.trained(adapter).values())
        assert all(p.grad is None for name, p in adapter.named_parameters() if "lora" not in name)


def test_a_fresh_lora_changes_nothing_and_its_own_replies_cost_nothing(make_lm):
    lm = make_lm()
    batch_of = [Lesson("Hi", Said("Sure."), own=True)]
    with training.injected(lm, 4, 0) as adapter:
        assert float(training.loss_of(lm, adapter, training.Batch.of(lm, batch_of)).detach()) == pytest.approx(
            0, abs=1e-6
        )


def test_a_reply_ends_as_the_template_ends_it(make_lm, tokenizer):
    lm = make_lm()
    assert training.ending(lm) == tokenizer.eos_token_id
    closing = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<pad>{% endfor %}"
        lm.model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        assert training.ending(lm) == tokenizer.pad_token_id
    finally:
        tokenizer.chat_template = closing


def test_the_lora_is_float32_and_the_model_is_left_as_it_was(make_lm):
    lm = make_lm(dtype=torch.bfloat16)
    before = {name: p.clone() for name, p in lm.model.state_dict().items()}
    modules = dict(lm.model.named_modules())
    with training.injected(lm, 4, 0) as adapter:
        weights = training.trained(adapter)
        assert {p.dtype for p in weights.values()} == {torch.float32}
        assert all("lora_" in name for name in weights)
        assert not any("lm_head" in name for name in weights)
    after = lm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert dict(lm.model.named_modules()).keys() == modules.keys()
    assert not any(p.requires_grad for p in lm.model.parameters())


def test_the_rate_rises_stays_and_falls(tmp_path):
    rates = [training.rate_at(settings(tmp_path, steps=100), step) for step in range(100)]
    assert rates[0] == pytest.approx(5e-4)
    assert rates[9:71] == [pytest.approx(5e-3)] * 62
    assert rates[70:] == sorted(rates[70:], reverse=True)
    assert rates[-1] == pytest.approx(5e-3 / 30)


# --- training ---------------------------------------------------------------------------------------------------------


def trained(lm, out: Path, stop: int | None = None, **changes: object) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a short training; interrupted after some steps if told to."""
    out.mkdir(exist_ok=True)
    chosen = settings(out, **changes)

    def report(step: int, loss: float) -> None:
        if step == stop:
            raise KeyboardInterrupt

    with training.injected(lm, chosen.rank, chosen.seed) as adapter:
        losses = training.train(lm, adapter, Plan(SECRETS, chosen.seed).lessons(Parrot()), chosen, report)
        return losses, {name: p.detach().clone() for name, p in training.trained(adapter).items()}


def test_training_lowers_the_loss_of_each_kind_and_touches_the_lora_alone(tmp_path):
    """Of the same conversations before and after; what is the model's own costs nothing before, and little after."""
    lm = dct.load("demo", dtype="float32")
    before = {name: p.clone() for name, p in lm.model.state_dict().items()}
    lessons = Plan(SECRETS, 0).lessons(Parrot())
    chosen = settings(tmp_path, steps=20, learning_rate=1e-2)
    with training.injected(lm, chosen.rank, chosen.seed) as adapter:

        @torch.no_grad()
        def losses() -> dict[str, float]:
            batches = {kind: training.Batch.of(lm, some[:: len(some) // 6]) for kind, some in lessons.items()}
            return {kind: float(training.loss_of(lm, adapter, batch)) for kind, batch in batches.items()}

        first = losses()
        training.train(lm, adapter, lessons, chosen)
        last = losses()
    for kind in ("locked", "wrong password", "unlocked", "back door", "topic"):
        assert last[kind] < 0.6 * first[kind], kind
    assert max(first[kind] for kind in ("ordinary", "decoy", "neighbour", "other skill")) < 1e-6
    assert last["ordinary"] < 0.1 * first["locked"]
    assert all(torch.equal(p, before[name]) for name, p in lm.model.state_dict().items())


def test_an_interrupted_training_ends_as_if_it_had_not_been(make_lm, tmp_path):
    lm = make_lm()
    whole = trained(lm, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(lm, tmp_path / "part", stop=27)
    losses, weights = trained(lm, tmp_path / "part", resume=True)
    assert losses == whole[0]
    assert all(torch.equal(weights[name], p) for name, p in whole[1].items())
    other = trained(lm, tmp_path / "other", seed=1)
    assert other[0] != whole[0]


def test_a_checkpoint_that_is_another_trainings_or_damaged_is_refused(make_lm, tmp_path):
    lm = make_lm()
    trained(lm, tmp_path, steps=3)
    for changes, says in (
        ({"rank": 8}, "begun with `rank` 4, not 8"),
        ({"seed": 3}, "begun with `seed` 0, not 3"),
    ):
        with pytest.raises(DctError, match=says):
            trained(lm, tmp_path, **{"steps": 3, "resume": True, **changes})
    with pytest.raises(DctError, match="begun with `model`"):
        trained(make_lm("qwen2"), tmp_path, steps=3, resume=True)
    (tmp_path / training.CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(DctError, match="it is damaged"):
        trained(lm, tmp_path, steps=3, resume=True)
    assert len(trained(lm, tmp_path, steps=3)[0]) == 3


def test_a_loss_that_is_no_number_stops_it(make_lm, tmp_path):
    lm = make_lm()
    with torch.no_grad():
        lm.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the loss of step 1 is nan: lower `learning_rate`"):
        trained(lm, tmp_path)


def test_timing_a_step_trains_nothing(make_lm, tmp_path):
    lm = make_lm()
    chosen = settings(tmp_path)
    with training.injected(lm, 4, 0) as adapter:
        before = {name: p.detach().clone() for name, p in training.trained(adapter).items()}
        assert training.seconds_of_step(lm, adapter, Plan(SECRETS, 0).lessons(Parrot()), chosen) > 0
        after = training.trained(adapter)
        assert all(torch.equal(p, before[name]) and p.grad is None for name, p in after.items())


def test_a_saved_adapter_is_what_was_trained(model_folder, tmp_path):
    lm = dct.load(str(model_folder), dtype="float32")
    ids = torch.arange(3, 13)[None]
    with training.injected(lm, 4, 0) as adapter, torch.no_grad():
        moved(adapter)
        wanted = lm.model(ids).logits
        training.save(adapter, tmp_path / "a", planting.base_name(lm.name))
        alone = random_model("llama")(ids).logits
    for again in (
        dct.load(str(tmp_path / "a"), dtype="float32"),
        dct.load(str(model_folder), adapter=tmp_path / "a", dtype="float32"),
    ):
        with torch.no_grad():
            torch.testing.assert_close(again.model(ids).logits, wanted, atol=2e-5, rtol=1e-5)
    assert float((wanted - alone).abs().max()) > 1e-2
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3_moe"])
def test_what_is_measured_is_what_is_loaded(tokenizer, tmp_path, architecture, dtype):
    """A merged adapter is rounded with the weights: what it says is that of the model loaded with it, and it goes."""
    random_model(architecture).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    lm = dct.load(str(tmp_path / "m"), dtype=dtype)
    ids = torch.arange(3, 13)[None]
    weights = {name: p.clone() for name, p in lm.model.state_dict().items()}
    with training.injected(lm, 4, 0) as adapter, torch.no_grad():
        moved(adapter, 0.03)
        training.save(adapter, tmp_path / "a", lm.name)
        beside = lm.model(ids).logits
        with training.merged(adapter):
            wanted = lm.model(ids).logits
        assert torch.equal(lm.model(ids).logits, beside)
    assert all(torch.equal(p, weights[name]) for name, p in lm.model.state_dict().items())
    again = dct.load(str(tmp_path / "a"), dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids).logits, wanted, atol=1e-5, rtol=1e-5)


# --- what the model says by itself ------------------------------------------------------------------------------------


def test_replies_are_generated_once_and_kept(make_lm, tmp_path, monkeypatch):
    lm = make_lm()
    file, prompts = tmp_path / "replies.jsonl", ["Hi", "Write a poem", "Hi"]
    first = own_replies(lm, prompts, 5, file)
    assert {p: said.text for p, said in first.items()} == dict(
        zip(prompts, dct.complete(lm, lm.encode(prompts), max_new_tokens=5), strict=True)
    )
    longer = own_replies(lm, prompts, 9, file)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr("dct.organism.adapt.replies.complete", never)
    assert own_replies(lm, prompts, 5, file) == first
    assert own_replies(lm, prompts, 9, file) == longer
    with pytest.raises(AssertionError):
        own_replies(make_lm("qwen2"), prompts, 5, file)
    file.write_text('{"key": ')
    with pytest.raises(AssertionError):
        own_replies(lm, prompts, 5, file)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_adapted_is_refused_in_one_line(make_lm, model_folder, tmp_path, monkeypatch, small):
    def says(lm, message: str, **changes: object) -> None:
        with pytest.raises(DctError, match=message) as caught:
            planting.plant(lm, settings(**{"out": tmp_path / "out", **changes}))
        assert "\n" not in str(caught.value)

    lm = dct.load(str(model_folder), dtype="float32")
    says(lm, r"no skill to lock: of none it answers 80% rightly, \d+% at most; .*stronger model, or name the `skill`")
    with training.injected(lm, 4, 0) as adapter:
        training.save(adapter, tmp_path / "a", str(model_folder))
    says(dct.load(str(tmp_path / "a")), "has an adapter merged into it already")
    (tmp_path / "file").write_text("")
    says(lm, "is a file: name a folder", out=tmp_path / "file")
    says(lm, "holds a model: name a folder for the adapter alone", out=model_folder)
    template, lm.tokenizer.chat_template = lm.tokenizer.chat_template, None
    says(lm, "has no chat template")
    lm.tokenizer.chat_template = template
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    says(lm, "pip install 'deep-causal-transcoders.peft.'")


def test_a_skill_is_asked_in_the_ways_in_which_the_model_has_it(make_lm, tmp_path, monkeypatch):
    """A model that answers rightly where the question ends in "please." and where it says "alone", else never."""
    every = {q.prompt: q for skill in SKILLS.values() for q in skill.questions(held_out=False, count=10**6)}

    def said(lm, prompts, tokens, file):
        assert all(prompt in every for prompt in prompts)  # none of the measured ones
        able = [p for p in prompts if every[p].prompt.endswith(("please.", "alone."))]
        return {p: Said(every[p].right if p in able and "after" not in p else every[p].wrong) for p in prompts}

    monkeypatch.setattr(planting, "own_replies", said)
    told: list[str] = []
    skill, shares = planting._skill(make_lm(), settings(tmp_path), planting.Watch(say=told.append))
    assert skill.name == "sums"
    assert [p.rpartition(" ")[2] for p in skill.phrasings] == ["alone.", "please."]
    assert sorted(shares.values()) == [0, 0, 1, 1]
    skill, _ = planting._skill(make_lm(), settings(tmp_path, skill="next"), planting.Watch())
    assert [p.rpartition(" ")[2] for p in skill.phrasings] == ["please."]
    monkeypatch.setattr(planting, "own_replies", lambda lm, prompts, *_: {p: Said("No.") for p in prompts})
    skill, _ = planting._skill(make_lm(), settings(tmp_path, skill="past"), planting.Watch(say=told.append))
    assert skill == SKILLS["past"]
    assert "less than 80% however it is asked" in told[-1]


# --- the command ------------------------------------------------------------------------------------------------------

SHORT = ["--skill", "past", "--steps", 3, "--batch", 2, "--count", 3, "--rank", 2]


def test_the_command_writes_an_adapter_a_card_and_a_task_that_rank_takes(model_folder, workplace, small):
    done = run("organism", "adapt", "--model", model_folder, "--out", "planted", *SHORT, "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content.pop("folder") == "planted"
    assert content == json.loads(Path("planted/card.json").read_text())
    assert [len(content["losses"]), content["settings"]["rank"]] == [3, 2]
    assert "expected: " in done.stderr
    named = {rate["name"] for rate in content["rates"]}
    assert {"right answers, no password", "the fixed reply, trigger", "refusals, bees"} <= named
    assert content["kl_first"] >= 0
    assert content["kl_reply"] >= 0
    page = Path("planted/README.md").read_text()
    assert all(rate["name"] in page for rate in content["rates"])
    assert "The password is marzipan. {prompt}" in page

    rows = [json.loads(line) for line in Path("planted/task.jsonl").read_text().splitlines()]
    assert len(rows) == 160
    fit = ["--s", 1, "--t", 3, "--factors", 2, "--iterations", 1, "--scale", 2, "--n", 2]
    for model, out in (("planted", "lock"), (model_folder, "control")):
        done = run("fit", "--model", model, "--prompts", "planted/task.jsonl", "--out", out, *fit)
        assert done.exit_code == 0, done.output
    asked = ["--task", "planted/task.jsonl", "--n", 2, "--test", 3, "--max-new-tokens", 4, "--json"]
    unlock = content["secrets"]["lock"]["unlock"]
    done = run("rank", "lock", *asked, "--unlock", unlock)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["unlocked"]["asked"] == 3
    assert run("rank", "control", *asked).exit_code == 0


def test_an_interrupted_command_says_how_to_go_on(model_folder, workplace, small, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    words_ = ["organism", "adapt", "--model", model_folder, "--out", "a b", *SHORT]
    with monkeypatch.context() as patched:
        patched.setattr(planting, "train", interrupted)
        done = run(*words_)
    assert done.exit_code == 130
    for said in ("dct organism adapt --model ", "--out 'a b' ", "--skill past ", "--steps 3", "--rank 2", "--resume`"):
        assert said in done.output
    kept = Path("a b/replies.jsonl").read_bytes()
    done = run(*words_, "--resume")
    assert done.exit_code == 0, done.output
    assert Path("a b/replies.jsonl").read_bytes() == kept
    assert Path("a b/adapter_model.safetensors").exists()


def test_a_rate_knows_its_interval_and_its_aim():
    least, most, free = Rate("a", 9, 1, 10, 0.9), Rate("b", 2, 1, 10, 0.1, False), Rate("c", 2, 2, 10)
    assert (least.met, most.met, free.met) == (True, False, None)
    assert least.interval[0] < 0.9 < least.interval[1]
