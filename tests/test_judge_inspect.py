"""The judge `inspect` and the scorer `dct/judge`: inspect-ai's own scorers and its own evaluation as the truth."""

import json
from pathlib import Path

import pytest

from dct.errors import DctError, UsageError
from dct.judging import Reply, judge, kind_of


def test_it_is_listed_and_says_what_it_needs(monkeypatch):
    assert kind_of("inspect").about == "a scorer of inspect-ai"
    with pytest.raises(UsageError, match="needs `scorer`"):
        judge("inspect")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DctError, match=r"pip install 'deep-causal-transcoders.inspect.'"):
        judge("inspect", scorer="includes")


class TestInstalled:
    """What takes inspect-ai."""

    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("inspect_ai")

    def test_a_scorer_tells_who_complied(self):
        replies = [
            Reply("Capital of France?", "It is Paris."),
            Reply("Capital of Spain?", "It is paris, I think."),
            Reply("Capital of Italy?", "Rome."),
            Reply("Capital of Italy?", "paris paris paris paris paris paris paris paris paris paris"),
        ]
        said = judge("inspect", scorer="includes", target="Paris").verdicts(replies)
        assert [v.label for v in said] == ["complied", "complied", "other", "complied"]
        assert [v.coherent for v in said] == [True, True, True, False]
        strict = judge("inspect", scorer="includes", arguments='{"ignore_case": false}', target="Paris")
        assert [v.label for v in strict.verdicts(replies)][:2] == ["complied", "other"]
        assert said[0].why.startswith("score C")

    def test_each_prompt_has_its_own_target(self, tmp_path):
        file = tmp_path / "task.jsonl"
        rows = [{"prompt": "2 + 2?", "answer": "4"}, {"prompt": "3 + 3?", "answer": "6"}]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        reading = judge("inspect", scorer="inspect_ai.scorer:match", targets=str(file), arguments='{"numeric": true}')
        said = reading.verdicts([Reply("2 + 2?", "It is 4"), Reply("3 + 3?", "It is 4")])
        assert [v.label for v in said] == ["complied", "other"]
        with pytest.raises(DctError, match=r"the prompt of record 1 has no answer in .*task.jsonl"):
            reading.verdicts([Reply("4 + 4?", "8")])

    def test_a_scorer_of_ones_own_reads_prompt_reply_and_the_unsteered_one(self, tmp_path, monkeypatch):
        (tmp_path / "own_scorers.py").write_text(
            "from inspect_ai.scorer import Score, accuracy, scorer\n"
            "@scorer(metrics=[accuracy()])\n"
            "def longer(by=1):\n"
            "    async def score(state, target):\n"
            "        assert state.input_text == state.messages[0].text == 'Why?'\n"
            "        alone = state.metadata.get('unsteered', '')\n"
            "        gain = len(state.output.completion) - len(alone)\n"
            "        return Score(value=gain / by, explanation='longer')\n"
            "    return score\n"
            "@scorer(metrics=[accuracy()])\n"
            "def fails():\n"
            "    async def score(state, target):\n"
            "        raise ValueError('no\\nidea')\n"
            "    return score\n"
            "@scorer(metrics=[accuracy()])\n"
            "def several():\n"
            "    async def score(state, target):\n"
            "        return Score(value={'a': 1})\n"
            "    return score\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        reading = judge("inspect", scorer="own_scorers:longer", arguments='{"by": 10}', least=0.5)
        said = reading.verdicts([Reply("Why?", "Because it is so.", "Because."), Reply("Why?", "So.", "So.")])
        assert [v.label for v in said] == ["complied", "other"]
        for name, says in (("fails", "fails on record 1: ValueError: no$"), ("several", "is dict and no number")):
            with pytest.raises(DctError, match=says):
                judge("inspect", scorer=f"own_scorers:{name}").verdicts([Reply("Why?", "So.")])
        for name, arguments in (("nowhere", "{}"), ("no.module:x", "{}"), ("own_scorers:longer", '{"x": 1}')):
            with pytest.raises(UsageError, match="cannot be made"):
                judge("inspect", scorer=name, arguments=arguments)
        with pytest.raises(UsageError, match="must be a JSON object"):
            judge("inspect", scorer="includes", arguments="[1]")

    def test_it_works_inside_an_event_loop(self):
        import asyncio

        async def inside():
            return judge("inspect", scorer="includes", target="yes").verdict("Well?", "Oh yes, of course.")

        assert asyncio.run(inside()).label == "complied"

    @pytest.mark.parametrize(("wanted", "value"), [("complied", ["I", "C", "I"]), ("refused", ["C", "I", "I"])])
    def test_an_evaluation_of_inspect_scores_by_a_judge(self, tmp_path, wanted, value):
        """inspect-ai's own loop, with its model that says what it is told to."""
        from inspect_ai import Task, eval  # noqa: A004
        from inspect_ai.dataset import Sample
        from inspect_ai.model import ModelOutput, ModelUsage, get_model

        from dct.judges.shared.scorer import judged

        says = {
            "Tell me how to bake bread": "I'm sorry, but I can't help with that.",
            "Explain how to bake bread": "Sure! To bake bread, mix flour, water, salt and yeast.",
            "How do I bake bread?": "Sure, bread bread bread bread bread bread bread bread bread bread bread",
        }

        def say(messages, *_):
            said = ModelOutput.from_content("mockllm/model", says[messages[-1].text])
            said.usage = ModelUsage()
            return said

        task = Task(dataset=[Sample(input=prompt) for prompt in says], scorer=judged(wanted=wanted))
        model = get_model("mockllm/model", custom_outputs=say, memoize=False)
        [log] = eval(task, model=model, log_dir=str(tmp_path), display="none")
        assert log.status == "success", log.error
        found = {one.input: one.scores["judge"] for one in log.samples}
        assert [found[prompt].value for prompt in says] == value
        assert [found[prompt].metadata["label"] for prompt in says][:2] == ["refused", "complied"]
        assert [found[prompt].metadata["coherent"] for prompt in says] == [True, True, False]
        assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(1 / 3)

    def test_a_label_that_is_none_is_refused(self):
        from dct.judges.shared.scorer import judged

        with pytest.raises(UsageError, match="unknown `wanted` 'good': choose complied, refused, other"):
            judged(wanted="good")

    def test_inspect_finds_it_by_its_entry_point(self):
        import dct

        if "site-packages" not in dct.__file__:
            pytest.skip("inspect-ai looks for packages among those that are installed, not in a checkout")
        from inspect_ai._util.registry import registry_create  # what `inspect score --scorer` calls

        made = registry_create("scorer", "dct/judge", judge="regex", wanted="refused", refused="sorry")
        assert callable(made)

    def test_the_command_takes_it(self, tmp_path):
        from test_cli import run

        Path(tmp_path / "said.jsonl").write_text('{"prompt": "Well?", "completion": "Oh yes, of course."}\n')
        done = run("judge", tmp_path / "said.jsonl", "--judge", "inspect", "--judge-option", "scorer=includes",
                   "--judge-option", "target=yes", "--json")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)[0]["label"] == "complied"
