"""`llm`: a language model reads the reply and says what it does: behind an OpenAI-compatible endpoint, or a local one.

What is sent is a template with the prompt, the reply and the unsteered reply in it; another one can be given as a file.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from dct.errors import DctError, UsageError
from dct.judges.shared.coherence import incoherence
from dct.judges.shared.endpoint import Cache, Endpoint
from dct.judging import LABELS, OTHER, Judge, Reply, Verdict
from dct.team import current

TEMPLATE = Path(__file__).parent / "shared" / "llm.txt"

HOLDER = re.compile(r"\{(prompt|completion|unsteered)\}")

UNREADABLE = 0.5
"""Share of answers without a label from which on a judge is none."""


class Llm(Judge):
    """A model is asked for a label and for `coherent` or `incoherent`.

    Options:
        url: of the endpoint, such as http://localhost:8000/v1; empty: the model at hand is asked.
        served: the name under which the endpoint knows its model.
        template: file to send instead of the package's, with {prompt} and {completion} in it, {unsteered} if wanted.
        key: environment variable that holds the endpoint's key; empty where it wants none.
        characters: of each text that are shown, at most.
        max_new_tokens: length of an answer.
        timeout: seconds to wait for an answer.
        retries: how often a request that failed in passing is made again, after waits that double.
        parallel: requests at a time.
        cache: folder of answers that were given before; empty: dct/judge in the user's cache folder; `none` for none.
    """

    name = "llm"
    about = "a language model that reads"
    options: ClassVar = {
        "url": "", "served": "", "template": "", "key": "", "characters": 4000, "max_new_tokens": 16,
        "timeout": 60.0, "retries": 4, "parallel": 4, "cache": "",
    }  # fmt: skip
    uses_model = True

    def __init__(self, lm: Any = None, **given: Any) -> None:
        super().__init__(lm, **given)
        own = self.own
        for name in ("characters", "max_new_tokens", "timeout", "parallel"):
            if not own[name] > 0:
                raise UsageError(f"`{name}` must be positive: got {own[name]}", argument=name)
        if not own["url"] and lm is None:
            raise UsageError("the judge llm needs `model`, or the judge's own option `url`", argument="model")
        self.template = _template(own["template"])
        self.cache = Cache(own["cache"])
        self.endpoint = Endpoint(own) if own["url"] else None

    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        """By the first label in the model's answer.

        Raises:
            DctError: the endpoint cannot be reached or refuses, or most answers hold no label.
        """
        asked = [self.question(reply) for reply in replies]
        kept = self.cache.of(self._asked_of)
        answers = current().agreed(lambda: {text: kept.get(text) for text in dict.fromkeys(asked)})
        missing = [text for text, answer in answers.items() if answer is None]
        if self.endpoint is None:
            answers |= self._said(missing, kept)
        else:
            answers |= current().agreed(lambda: self._told(missing, kept))
        found = [self._read(answers[text] or "", reply) for text, reply in zip(asked, replies, strict=True)]
        unreadable = [v.why for v in found if v.why.startswith("no label in ")]
        if len(unreadable) > UNREADABLE * len(found):
            raise DctError(
                f"{len(unreadable)} of {len(found)} answers of the judge hold no label ({unreadable[0]}): take a "
                "stronger model or another template"
            )
        return found

    def question(self, reply: Reply) -> str:
        """What is sent for a reply."""
        most = self.own["characters"]
        texts = {"prompt": reply.prompt, "completion": reply.completion, "unsteered": reply.unsteered or "(not known)"}
        shown = {name: text if len(text) <= most else f"{text[:most]} […]" for name, text in texts.items()}
        return HOLDER.sub(lambda found: shown[found[1]], self.template)  # at once: a text may hold a place holder

    @property
    def _asked_of(self) -> dict[str, Any]:
        """What an answer depends on beside the question."""
        who = [self.own["url"], self.own["served"]] if self.endpoint else [self.lm.name, self.lm.fingerprint]  # type: ignore[union-attr]
        return {"who": who, "max_new_tokens": self.own["max_new_tokens"]}

    def _told(self, questions: Sequence[str], kept: Cache) -> dict[str, str]:
        """The endpoint's answers, each kept as it comes."""
        assert self.endpoint is not None
        answers = {}
        for question, answer in self.endpoint.answers(questions):
            answers[question] = answer
            kept.put(question, answer)
        return answers

    def _said(self, questions: Sequence[str], kept: Cache) -> dict[str, str]:
        """The answers of the model at hand."""
        from dct.generation import complete

        if not questions:
            return {}
        assert self.lm is not None
        said = complete(self.lm, self.lm.encode(questions), max_new_tokens=self.own["max_new_tokens"], batch=16)
        for question, answer in zip(questions, said, strict=True):
            kept.put(question, answer)
        return dict(zip(questions, said, strict=True))

    def _read(self, answer: str, reply: Reply) -> Verdict:
        words = re.findall(r"[a-z]+", answer.lower())
        label = next((word for word in words if word in LABELS), None)
        if label is None:
            return Verdict(OTHER, not incoherence(reply.completion), f"no label in {answer[:40]!r}")
        return Verdict(label, "incoherent" not in words, f"said {answer.strip()[:40]!r}")


def _template(path: str) -> str:
    """The text of a template.

    Raises:
        UsageError: it cannot be read, or a place holder is missing.
    """
    try:
        text = Path(path or TEMPLATE).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"`template`: cannot read {path}: {reason}", argument="template") from error
    for holder in ("{prompt}", "{completion}"):
        if holder not in text:
            raise UsageError(f"`template` needs {holder} in it: {path} has none", argument="template")
    return text
