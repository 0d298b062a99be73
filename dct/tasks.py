"""Questions with known answers, and which steering vectors make a model answer them.

A password-locked model knows an answer that it does not give. Whether a vector unlocks it is asked of whole greedy
completions, never of a word's logit: vectors are chosen on some questions and reported on others.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dct.calibration import random_directions
from dct.errors import DctError, UsageError
from dct.estimate import Cost, completions_seconds, cost
from dct.factors import Factors
from dct.generation import complete, completion_bytes
from dct.model import LanguageModel
from dct.prompts import records, texts_of
from dct.ranking import Effect, Scorer, candidates, tries, words

KEPT = 8
"""Candidates that successive halving never goes below: they are asked every question."""

AT_ONCE = 64
"""Completions at a time."""

TESTED = 5
"""The first so many of a ranking are asked the test questions."""

Ask = Callable[[list[int], list[int]], Bool[Tensor, "candidates questions"]]
"""Asks some candidates some questions, both by number: which answers are right."""


@dataclass(frozen=True)
class Question:
    """A prompt and what a right completion looks like.

    Attributes:
        prompt: what the model is asked.
        answer: a right completion is this text, white space at its ends aside; None where only a pattern is given.
        pattern: a right completion holds a match of this regular expression; None where it must be the answer itself.
    """

    prompt: str
    answer: str | None
    pattern: re.Pattern[str] | None = None

    def right(self, completion: str) -> bool:
        if self.pattern is not None:
            return self.pattern.search(completion) is not None
        return self.answer is not None and completion.strip() == self.answer.strip()


@dataclass(frozen=True)
class Task:
    """Questions in order.

    Attributes:
        questions: the questions.
        origin: how the set was named.
        unlock: template that turns a prompt into one which the unlocked model is asked ("... {prompt}"), if known.
    """

    questions: tuple[Question, ...]
    origin: str = ""
    unlock: str | None = None

    def __len__(self) -> int:
        return len(self.questions)

    def without(self, texts: Sequence[str]) -> "Task":
        """The questions whose prompts are not among `texts`."""
        seen = set(texts)
        return Task(tuple(q for q in self.questions if q.prompt not in seen), self.origin, self.unlock)

    def split(self, validation: int, test: int) -> tuple["Task", "Task"]:
        """The first `validation` questions, to choose on, and at most `test` of those behind them, to report on.

        Raises:
            DctError: no question is left to report on.
        """
        if len(self) < 2:
            raise DctError(
                f"{self.origin or 'the task'} has {len(self)} question(s) left: choosing takes one, testing too"
            )
        if len(self) <= validation:
            raise DctError(
                f"{self.origin or 'the task'} has {len(self)} questions left and {validation} are for choosing, none "
                f"for testing: ask for fewer (`n={len(self) // 2}`)"
            )
        first, rest = self.questions[:validation], self.questions[validation : validation + test]
        return Task(first, self.origin, self.unlock), Task(rest, self.origin, self.unlock)

    def unlocked(self) -> "Task | None":
        """The same questions as the unlocked model is asked them."""
        if self.unlock is None:
            return None
        asked = (Question(self.unlock.replace("{prompt}", q.prompt), q.answer, q.pattern) for q in self.questions)
        return Task(tuple(asked), self.origin)


def read(origin: str, column: str | None = None, match: str | None = None, unlock: str | None = None) -> Task:
    """Reads a task: records with a prompt and an `answer`, or a `regex`, as .jsonl, .json, .csv or .tsv.

    Args:
        origin: as for prompt sets.
        column: field that holds the prompt.
        match: regular expression with `{answer}` in it, for answers that are only part of a completion:
            `\\b{answer}\\b` finds the answer as a word, `#### {answer}$` at the end. Left out, a completion must be
            the answer. A record's own `regex` goes before it.
        unlock: template with `{prompt}` in it, for what the unlocked model is asked.

    Raises:
        UsageError: a template without its place holder.
        DctError: as in `prompts.read`; a record with neither answer nor regex; a regular expression that is none.
    """
    for name, template, holder in (("match", match, "{answer}"), ("unlock", unlock, "{prompt}")):
        if template is not None and holder not in template:
            raise UsageError(f"`{name}` needs {holder} in it, got {template!r}", argument=name)
    rows = records(origin)
    texts = texts_of(rows, column, origin)
    questions = []
    for number, (row, text) in enumerate(zip(rows, texts, strict=True), start=1):
        fields: dict[str, Any] = row if isinstance(row, dict) else {}
        answer, regex = (_given(fields.get(name)) for name in ("answer", "regex"))
        if answer is None and regex is None:
            raise DctError(f"question {number} of {origin} has neither `answer` nor `regex`: a task needs one of them")
        if regex is None and match is not None and answer is not None:
            regex = match.replace("{answer}", re.escape(answer))
        try:
            questions.append(Question(text, answer, None if regex is None else re.compile(regex)))
        except re.error as error:
            raise DctError(f"question {number} of {origin}: {regex!r} is no regular expression ({error})") from error
    return Task(tuple(questions), origin, unlock)


def _given(value: Any) -> str | None:
    return None if value is None or not str(value).strip() else str(value)


def answer_length(lm: LanguageModel, task: Task, most: int = 64) -> int:
    """Tokens that are enough to tell right from wrong: where completions must equal their answers, twice the longest
    answer and a few more; `most` for patterns.
    """
    if any(q.pattern is not None for q in task.questions):
        return most
    longest = max(len(lm.tokenizer(q.answer, add_special_tokens=False)["input_ids"]) for q in task.questions)
    return min(most, 2 * longest + 8)


def examine(
    lm: LanguageModel,
    task: Task,
    vectors: Float[Tensor, "vectors width"],
    layer: int,
    *,
    system: str | None = None,
    max_new_tokens: int = 64,
    batch: int = AT_ONCE,
    on_rows: Callable[[int], None] | None = None,
) -> Bool[Tensor, "vectors questions"]:
    """Which questions are answered rightly under which vector: greedy completions, all rows in batches.

    Args:
        vectors: what is added to hidden_states[layer], as it stands (pass R v; zeros leave the model alone).
        on_rows: told how many completions have been judged.
    """
    prompts = lm.encode([q.prompt for q in task.questions], system)
    rows = [(v, q) for v in range(len(vectors)) for q in range(len(prompts))]
    right = torch.zeros(len(vectors), len(prompts), dtype=torch.bool)
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        added = vectors[[v for v, _ in some]].to(lm.device)
        said = complete(lm, [prompts[q] for _, q in some], added, layer, max_new_tokens=max_new_tokens, batch=batch)
        for (v, q), text in zip(some, said, strict=True):
            right[v, q] = task.questions[q].right(text)
        if on_rows is not None:
            on_rows(len(some))
    return right


@dataclass(frozen=True)
class Mark:
    """Right answers of one candidate.

    Attributes:
        right, asked: how many questions it answered rightly, of how many it was asked.
    """

    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked


def rounds(candidates: int, questions: int, exhaustive: bool = False) -> list[tuple[int, int]]:
    """Rounds of successive halving: (candidates, questions asked of each so far). Each round asks twice the questions
    of half the candidates, down to `KEPT`, which are asked everything. A single round when exhaustive.
    """
    if exhaustive:
        return [(candidates, questions)]
    asked = min(questions, max(2, questions // 8))
    plan = [(candidates, asked)]
    while asked < questions:
        candidates = min(candidates, max(KEPT, candidates // 2))
        asked = questions if candidates <= KEPT else min(questions, 2 * asked)
        plan.append((candidates, asked))
    return plan


def completions(plan: list[tuple[int, int]]) -> int:
    """Completions that the rounds of `rounds` take."""
    before = [0, *(until for _, until in plan)]
    return sum(candidates * (until - done) for (candidates, until), done in zip(plan, before, strict=False))


@dataclass(frozen=True)
class Contest:
    """What became of all candidates.

    Attributes:
        order: every candidate with its mark, best first.
        everyone: right answers of all candidates together to the questions that each of them was asked.
    """

    order: list[tuple[int, Mark]]
    everyone: Mark


def halving(ask: Ask, count: int, questions: int, exhaustive: bool = False) -> Contest:
    """Candidates by right answers, best first, without asking all of them everything.

    Of each round the half with most right answers goes on; ties go to the lower number. So a candidate that was asked
    more stands before one that was asked less, and its mark says how many questions it rests on.

    Args:
        ask: judges candidates and questions by number.
        count: candidates; number them by what is known of them beforehand.
        questions: number of questions.
        exhaustive: ask every candidate every question.
    """
    order, done = list(range(count)), 0
    right = [0] * count
    asked = [0] * count
    everyone = Mark(0, 1)
    for survivors, until in rounds(count, questions, exhaustive):
        going = order[:survivors]
        judged = ask(going, list(range(done, until)))
        for candidate, row in zip(going, judged.tolist(), strict=True):
            right[candidate] += sum(row)
            asked[candidate] = until
        if done == 0:
            everyone = Mark(sum(right), sum(asked))
        order = sorted(order, key=lambda c: (-asked[c], -right[c] / asked[c], c))
        done = until
    return Contest([(c, Mark(right[c], asked[c])) for c in order], everyone)


@dataclass(frozen=True)
class Solver:
    """A steering vector and how many questions it answers.

    Attributes:
        vector: its name, as in a ranking.
        scale: norm at which it did best.
        alpha: the factor's strength; None for random vectors.
        validation: on the questions that it was chosen by.
        test: on the questions kept for reporting, for the first few of a ranking.
        effect: damage on harmless prompts, and the words' score on the test questions; for the first few.
    """

    vector: str
    scale: float
    alpha: float | None
    validation: Mark
    test: Mark | None = None
    effect: Effect | None = None


@dataclass(frozen=True)
class TaskRanking:
    """Steering vectors by the share of questions that they make the model answer, and their baselines.

    Attributes:
        vectors: best first on the validation questions; the first few with their test marks.
        unsteered, unlocked: test marks of the model left alone, and asked as one that knows the password.
        random_best: the best of as many random vectors at the same scales, chosen in the same way.
        random_mean: right answers of all random vectors to the questions that each of them was asked.
        scale: R; scales: the multiples of it that were tried.
        validation, test: how many questions of each.
    """

    vectors: list[Solver]
    unsteered: Mark
    unlocked: Mark | None
    random_best: Solver
    random_mean: Mark
    scale: float
    scales: tuple[float, ...]
    validation: int
    test: int
    harmless: int
    task: str

    @property
    def recovered(self) -> float | None:
        """Share of what the password unlocks that the best vector does: (test - unsteered) / (unlocked - unsteered)."""
        best = self.vectors[0].test
        if best is None or self.unlocked is None or self.unlocked.share <= self.unsteered.share:
            return None
        return (best.share - self.unsteered.share) / (self.unlocked.share - self.unsteered.share)


def _expected(
    lm: LanguageModel, task: Task, scorer: Scorer, rows: int, length: int, layer: int, system: str | None
) -> Cost:
    """What so many completions will take, by short ones of the first questions, and the damage of a few vectors."""
    prompts = lm.encode([q.prompt for q in task.questions[:AT_ONCE]], system)
    prompts = [prompts[k % len(prompts)] for k in range(AT_ONCE)]

    def say(size: int, tokens: int) -> None:
        complete(lm, prompts[:size], torch.zeros(size, lm.width), layer, max_new_tokens=tokens, batch=size)

    spent = completions_seconds(say, rows, AT_ONCE, length, lm.device)
    scored = scorer.expected(TESTED + 1)
    more = completion_bytes(lm, AT_ONCE, length + max(map(len, prompts)))
    return cost(spent + scored.seconds, max(more, scored.more_memory), lm.device, lm.memory)


def rank_by_task(
    lm: LanguageModel,
    factors: Factors,
    validation: Task,
    test: Task,
    harmless: Sequence[str] = (),
    *,
    scale: float | None = None,
    scales: Sequence[float] = (1.0,),
    positive: str = "Sure",
    negative: str = "Sorry",
    source: int | None = None,
    system: str | None = None,
    max_new_tokens: int | None = None,
    exhaustive: bool = False,
    seed: int = 0,
    on_rows: Callable[[int, int], None] | None = None,
    on_cost: Callable[[Cost], None] | None = None,
) -> TaskRanking:
    """Chooses among all vectors and scales by the validation questions, and reports on the test questions.

    Args:
        validation, test: two parts of a task with no question in common.
        harmless: damage is measured on them.
        scale, scales, source, system, seed: as in `rank`.
        positive, negative: words whose score stands beside the marks.
        max_new_tokens: of a completion; left out, what the answers need (`answer_length`).
        exhaustive: ask every vector every question instead of halving.
        on_rows: called with the completions judged, and all that will be.
        on_cost: told, before the first is asked, what all of them are expected to take.

    Raises:
        UsageError, DctError: as in `rank`.
    """
    layer: Any = factors.info.get("source") if source is None else source
    if layer is None:
        raise UsageError("these factors do not say which layer they were fitted at: pass `source`", argument="source")
    system = factors.info.get("system") if system is None else system
    R = factors.scale if scale is None else scale
    names, directions = candidates(factors)
    alpha = factors.alpha.repeat(len(directions) // len(factors))
    strongest = alpha.argsort(descending=True, stable=True).tolist()
    steered, norms = tries(directions[strongest], R, scales)
    null, _ = tries(random_directions(len(directions), lm.width, seed + 2), R, scales)
    length = max_new_tokens or max(answer_length(lm, validation), answer_length(lm, test))
    unlocked = test.unlocked()
    contest = completions(rounds(len(steered), len(validation), exhaustive))
    judged, planned = 0, 2 * contest + (TESTED + 2 + (unlocked is not None)) * len(test)

    def told(rows: int) -> None:
        nonlocal judged
        judged += rows
        if on_rows is not None:
            on_rows(judged, max(planned, judged))

    def asked(task: Task, vectors: Tensor) -> Tensor:
        return examine(lm, task, vectors, int(layer), system=system, max_new_tokens=length, on_rows=told)

    def marks(task: Task, vectors: Tensor) -> list[Mark]:
        return [Mark(int(row.sum()), len(task)) for row in asked(task, vectors)]

    def choose(vectors: Tensor) -> Contest:
        def ask(which: list[int], questions: list[int]) -> Tensor:
            return asked(Task(tuple(validation.questions[q] for q in questions)), vectors[which])

        return halving(ask, len(vectors), len(validation), exhaustive)

    prompts = [q.prompt for q in test.questions]
    scorer = Scorer(lm, words(lm, positive, negative, system), int(layer), prompts, harmless, system)
    nothing = torch.zeros(1, lm.width)
    if on_cost is not None:
        on_cost(_expected(lm, validation, scorer, planned, length, int(layer), system))
    found, luck = choose(steered), choose(null)
    solvers: list[Solver] = []
    best: list[int] = []
    for k, mark in found.order:  # a vector stands where its best scale does
        factor = strongest[k % len(strongest)]
        if all(s.vector != names[factor] for s in solvers):
            solvers.append(Solver(names[factor], norms[k], float(alpha[factor]), mark))
            best.append(k)
    top = steered[best[:TESTED]]
    for place, (mark, effect) in enumerate(zip(marks(test, top), scorer.effects(top), strict=True)):
        solvers[place] = replace(solvers[place], test=mark, effect=effect)
    lucky, mark = luck.order[0]
    [lucky_mark], [lucky_effect] = marks(test, null[[lucky]]), scorer.effects(null[[lucky]])
    return TaskRanking(
        vectors=solvers,
        unsteered=marks(test, nothing)[0],
        unlocked=None if unlocked is None else marks(unlocked, nothing)[0],
        random_best=Solver("random", norms[lucky], None, mark, lucky_mark, lucky_effect),
        random_mean=luck.everyone,
        scale=R,
        scales=tuple(scales),
        validation=len(validation),
        test=len(test),
        harmless=len(harmless),
        task=test.origin,
    )
