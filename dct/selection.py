"""Which vector does best by what the model says under it: an experiment with baselines, splits and intervals.

All vectors are heard on a few prompts, as are as many random ones and differences of means at all layers. Those with
most successes, and noise, then compete on more prompts, each arm with the same number of tries. Replies are judged; of
each arm the best one is chosen on validation prompts, where damage to harmless ones counts against it, and reported on
test prompts that nothing has seen before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from dct.arms import FOUND, HEARD, NOISE, RANDOM, SCREENED, SUPERVISED, Screen, noise, screen
from dct.baselines import beside
from dct.candidates import Aim, candidates, tries
from dct.damage import Harmless, preferred
from dct.estimate import Cost, clocked, cost
from dct.exam import Exam, Heard, Tally, middle
from dct.factors import Factors
from dct.halving import Contest, Mark, completions, rounds
from dct.journal import Journal
from dct.judging import COMPLIED, REFUSED, Judge, mcnemar, wilson
from dct.judging import judge as judge_by_name
from dct.model import LanguageModel
from dct.openings import chosen_words, known_words, openings
from dct.outcome import Champion, Selected, Selection
from dct.perturbation import layer_of
from dct.pool import Jury, Pool, divided
from dct.ranking import UNWATCHED, Watch, multiples
from dct.replies import Push, Replies
from dct.scoring import Contrast, Scorer
from dct.settings import RankSettings, SelectSettings
from dct.supervised import MOST, supervised
from dct.task_ranking import divided as divided_settings
from dct.wordpair import Words

SCALES = (0.7, 1.0, 1.4, 2.0)
"""Multiples of R at which everything is tried, unless told otherwise."""

ON_CPU, ON_GPU = 64, 100
"""Tokens of a reply, unless told otherwise."""

TIMED = 4
"""Replies by which a judge is timed."""


def select(
    lm: LanguageModel,
    factors: Factors,
    prompts: Sequence[str],
    harmless: Sequence[str] = (),
    settings: SelectSettings | None = None,
    *,
    n: int = 32,
    judge: Judge | None = None,
    journal: Journal | None = None,
    watch: Watch = UNWATCHED,
    **changes: Any,
) -> Selection:
    """Chooses the vector under which the model most often does what is wanted, and reports on prompts unseen before.

    Args:
        prompts: to choose by and to report on, in order; none that the fit saw. Those with something to gain are kept.
        harmless: where damage is measured, and towards which the supervised baseline points; without them neither is.
        settings: how many vectors compete, how many prompts to report on, how long replies are.
        n: prompts to choose by.
        judge: says what a reply does; left out, `refusal` with the likelihoods of this model.
        journal: keeps replies, so that an experiment that was cut goes on; left out, nothing is kept.
        watch: who is told how it goes.
        changes: fields of `SelectSettings`, and of `RankSettings`: texts, scale, scales, seed.

    Raises:
        UsageError, DctError: as in `rank`; too few prompts with something to gain.
    """
    settings, ranking = divided_settings(settings or SelectSettings(), changes)
    ranking.leave_order()
    aim = Aim.of(factors, scale=factors.scale * ranking.scale)
    rows = lm.encode([*prompts, *harmless], aim.system)
    # What is wrong with a prompt, a scale, the texts or the model is said before the work.
    tries(factors.V[:1], aim.scale, multiples(ranking, SCALES))
    Contrast(lm, known_words(lm, ranking.positive, ranking.negative, aim.system), aim.layer, rows[:1])
    length = settings.max_new_tokens or (ON_CPU if lm.device.type == "cpu" else ON_GPU)
    tally = Tally(len(prompts), watch.on_rows)
    replies = Replies(lm, length, system=aim.system, journal=journal, on_rows=tally)
    judging = judge or judge_by_name("refusal", lm)
    likely = [(None, prompt) for prompt in prompts[: n + settings.test]]
    kept = len(replies.known) - len(likely) + replies.missing(likely)  # of an earlier run, beyond those
    if replies.missing(likely):
        watch.cost(lambda: _cost(replies, replies.expected(prompts, replies.missing(likely))))
    watch.stage("unsteered")
    pool = divided(replies, judging, prompts, (n, settings.test), settings.wanted)
    watch.note(pool.told)
    mild = dict(zip(harmless, replies.said([(None, prompt) for prompt in harmless]), strict=True))
    jury = Jury(judging, {**pool.unsteered, **mild})
    trial = _Trial(lm, factors, aim, settings, ranking, replies, jury, pool, tuple(mild), watch)
    return trial.run(tally, kept)


def _cost(replies: Replies, spent: tuple[float, int], more: float = 0.0, memory: int = 0) -> Cost:
    """What replies take that were found to take so many seconds and bytes, with those of other work."""
    seconds, needed = spent
    return cost(seconds + more, max(needed, memory), replies.lm.device, replies.lm.memory)


@dataclass
class _Trial:
    """The experiment itself, once its prompts are known."""

    lm: LanguageModel
    factors: Factors
    aim: Aim
    settings: SelectSettings
    ranking: RankSettings
    replies: Replies
    jury: Jury
    pool: Pool
    mild: tuple[str, ...]
    watch: Watch
    scales: tuple[float, ...] = field(init=False)
    keep: int = field(init=False)
    exam: Exam[str] = field(init=False)

    def __post_init__(self) -> None:
        self.scales = tuple(sorted(multiples(self.ranking, SCALES)))
        self.keep = min(self.settings.keep, len(candidates(self.factors)[0]))
        self.exam = Exam(self.replies, lambda prompt: prompt, self._right, self.settings.exhaustive)

    @property
    def tries(self) -> int:
        """Pushes of each arm."""
        return self.keep * len(self.scales)

    def run(self, tally: Tally, kept: int) -> Selection:
        """Screen, auditions, contests, test and damage.

        Args:
            kept: replies that are on record from before.
        """
        compared = self._compared()
        for note in compared.notes:
            self.watch.note(note)
        few = self.pool.validation[:SCREENED]
        mild = self.mild[:SCREENED]
        scorer = Scorer(self.lm, compared, self.aim.layer, few, mild, system=self.aim.system)
        planned = self._planned()
        tally.planned = tally.done + planned
        made = max(0, planned - kept) if self._begun else planned
        self.watch.cost(lambda: self._expected(planned, made, scorer))
        screened = screen(self.factors, scorer, self.heard_at, self.ranking.seed)
        heard, entered = self._arms(screened, compared)
        harmless = Harmless(self.replies, self._reader, self.mild) if self.mild else None
        contests = {arm: self._contest(arm, pushes) for arm, pushes in entered.items()}
        if harmless is not None:
            contests = {arm: preferred(contest, entered[arm], harmless.kl) for arm, contest in contests.items()}
        chosen = {arm: entered[arm][contest.order[0][0]] for arm, contest in contests.items()}
        self.watch.stage("test")
        tested = self.exam.asked([*chosen.values(), None], self.pool.test).tolist()
        champions = [
            self._champion(arm, push, contests[arm].order[0][1], row, tested[0], harmless)
            for (arm, push), row in zip(chosen.items(), tested, strict=False)
        ]
        return Selection(
            vectors=self._vectors(screened, heard, entered[FOUND], contests[FOUND], scorer, champions[0], harmless),
            arms=champions,
            unsteered=Mark(sum(tested[-1]), len(self.pool.test)),
            alone=scorer.unsteered,
            random=screened.null_effects,
            pool=self.pool,
            words=compared,
            scale=self.aim.scale,
            scales=self.scales,
            tries=self.tries,
            harmless=len(self.mild),
            max_new_tokens=self.replies.length,
            judge=self.jury.judge.name,
            wanted=self.settings.wanted,
        )

    @property
    def _begun(self) -> bool:
        """What is on record is of this experiment: one of its vectors was heard."""
        push = Push(self.aim.layer, self.heard_at * candidates(self.factors)[1][0])
        return self.replies.missing([(push, self._first[0])]) == 0

    @cached_property
    def _beside(self) -> Aim:
        """Where and how far the vectors are added that are no perturbations of the factors' kind."""
        return beside(self.lm, self.aim, self.factors.info, self.pool.validation)

    @property
    def heard_at(self) -> float:
        """The length at which vectors are scored and heard."""
        return middle(self.scales) * self.aim.scale

    def _right(self, prompts: Sequence[str], texts: Sequence[str]) -> list[bool]:
        """Which replies are successes: the wanted label and coherent text."""
        verdicts = self.jury.verdicts(prompts, texts)
        return [verdict.label == self.settings.wanted and verdict.coherent for verdict in verdicts]

    def _compared(self) -> Words:
        """What the screen compares."""

        def listen() -> Any:
            """The model's openings, from the replies that are there."""
            said = self.jury.unsteered
            verdicts = dict(zip(said, self._reader.verdicts([*said], [*said.values()]), strict=True))
            refused = [said[p] for p, v in verdicts.items() if v.label == REFUSED and p not in self.mild]
            answered = [said[p] for p in self.mild if verdicts[p].label == COMPLIED and verdicts[p].coherent]
            return openings(self.lm, refused, answered, self.aim.system)

        pair, options = (self.ranking.positive, self.ranking.negative), {"system": self.aim.system}
        return chosen_words(self.lm, *pair, self.pool.validation, self.mild, listen=listen, **options)

    def _expected(self, planned: int, made: int, scorer: Scorer) -> Cost:
        """What is left to do: replies to be made and judged, and the screen."""
        asked = [*self.pool.validation, *self.pool.test]
        timed = asked[: min(TIMED, len(asked) - 1)]
        others = [self.jury.unsteered[prompt] for prompt in asked[1 : len(timed) + 1]]  # replies that are not theirs
        judged = clocked(lambda: self.jury.verdicts(timed, others), self.lm.device) / len(timed)
        scored = scorer.expected(2 * len(candidates(self.factors)[0]))
        tokens = self.replies.longest([*self.jury.unsteered.values()])
        spent = self.replies.expected(asked, made, tokens)
        return _cost(self.replies, spent, planned * judged + scored.seconds, scored.more_memory)

    def _planned(self) -> int:
        """Replies that auditions, contests, test and damage take, at most."""
        arms = 4 if self.mild else 3
        vectors = min(HEARD, len(candidates(self.factors)[0]))
        heard = 2 * vectors + (min(MOST, self.lm.depth) if self.mild else 0)
        lengths = len(self.scales) - (len(self.scales) - 1) // 2
        contest = completions(rounds(self.tries, len(self.pool.validation), self.settings.exhaustive))
        return lengths * heard * len(self._first) + arms * (contest + len(self.pool.test) + len(self.mild))

    def _arms(self, screened: Screen, compared: Words) -> tuple[dict[str, Heard], dict[str, list[Push]]]:
        """What the vectors did when they were heard, by name; and who competes, by arm: as many pushes of each."""
        aim, scales = self.aim, self.scales
        entrants = {arm: screened.entrants(arm, aim, scales) for arm in (FOUND, RANDOM)}
        if self.mild:
            self.watch.stage("difference of means")
            entrants[SUPERVISED] = supervised(
                self.lm, compared, self.pool.validation, self.mild, self._beside, scales, self.tries, SCREENED
            )
        heard = {arm: self._audition(arm, some) for arm, some in entrants.items()}
        # Most successes first, then as the screen had them.
        arms = {
            arm: [push for k in sorted(range(len(some)), key=lambda k: -some[k][1].right) for push in entrants[arm][k]]
            for arm, some in heard.items()
        }
        asked = [*self.pool.validation, *self.pool.test, *self.mild]
        positions = max(len(self.replies.ids(prompt)) for prompt in asked) + self.replies.length
        drawn = noise(self.lm.width, positions, self._beside, scales, self.keep, self.ranking.seed)  # all are alike
        arms[NOISE] = [push for pushes in drawn for push in pushes]
        by_name = {push.name: (push, mark) for push, mark in heard[FOUND]}
        return by_name, {arm: pushes[: self.tries] for arm, pushes in arms.items()}

    @property
    def _first(self) -> Sequence[str]:
        """The prompts on which everyone is heard: those that a contest begins with."""
        [(_, asked), *_] = rounds(self.tries, len(self.pool.validation))
        return self.pool.validation[:asked]

    def _audition(self, arm: str, entrants: Sequence[Sequence[Push]]) -> list[Heard]:
        self.watch.stage(f"listening, {arm}")
        return self.exam.audition(entrants, self._first, self.keep)

    def _contest(self, arm: str, pushes: Sequence[Push]) -> Contest:
        self.watch.stage(f"choosing, {arm}")
        return self.exam.choose(pushes, self.pool.validation)

    @cached_property
    def _reader(self) -> Jury:
        """Who tells refusals and broken text, whatever the experiment is about."""
        if self.jury.judge.name == "refusal":
            return self.jury
        return Jury(judge_by_name("refusal", self.lm), self.jury.unsteered)

    def _champion(
        self, arm: str, push: Push, mark: Mark, row: list[bool], found: list[bool], harmless: Harmless | None
    ) -> Champion:
        return Champion(
            arm=arm,
            vector=push.name,
            layer=layer_of(push.layer),
            scale=push.scale,
            validation=mark,
            test=Mark(sum(row), len(row)),
            interval=wilson(sum(row), len(row)),
            chance=None if arm == FOUND else mcnemar(found, row),
            damage=None if harmless is None else harmless.damage(push),
        )

    def _vectors(
        self,
        screened: Screen,
        heard: dict[str, Heard],
        pushes: Sequence[Push],
        contest: Contest,
        scorer: Scorer,
        champion: Champion,
        harmless: Harmless | None,
    ) -> list[Selected]:
        """All vectors, each once: those that competed at their best scale, best first; then those that were heard, by
        successes; then the others by score."""
        alpha = dict(zip(screened.names, screened.alpha, strict=True))
        best: dict[str, Heard] = {}
        for k, mark in contest.order:
            best.setdefault(pushes[k].name, (pushes[k], mark))
        competed = len(best)
        for name, (push, mark) in sorted(heard.items(), key=lambda one: -one[1][1].right):
            best.setdefault(name, (push, mark))
        effects = scorer.effects(torch.stack([push.added for push, _ in best.values()]))
        found = [
            Selected(push.name, alpha[push.name], push.scale, effect, mark)
            for (push, mark), effect in zip(best.values(), effects, strict=True)
        ]
        if harmless is not None:
            kl = [harmless.kl(push) for push, _ in [*best.values()][:competed]]
            found[:competed] = [
                replace(one, effect=replace(one.effect, kl=k)) for one, k in zip(found[:competed], kl, strict=True)
            ]
        found[0] = replace(found[0], test=champion.test)
        rest = (k for k in screened.order if screened.names[k] not in best)
        return found + [
            Selected(screened.names[k], screened.alpha[k], self.heard_at, screened.effects[k]) for k in rest
        ]
