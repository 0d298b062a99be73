"""A model before and after an edit: what it says, how it scores, what it writes along the directions taken out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dct.cli.terminal import Terminal
from dct.prompts import PromptSet
from dct.settings import AblateSettings, SaveSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dct.ablation import Ablation
    from dct.estimate import Cost
    from dct.model import LanguageModel
    from dct.saving import Saved
    from dct.scoring import Reading
    from dct.wordpair import Words


@dataclass
class State:
    """A model before or after an edit: how it scores, what it says, what it writes along the directions."""

    reading: "Reading"
    leak: float
    texts: list[str]


@dataclass
class Comparison:
    """What a model is compared with itself on."""

    terminal: Terminal
    lm: "LanguageModel"
    completed: PromptSet
    read: "Callable[[], Reading]"
    """How the model scores as it is."""
    words: "Words"
    probes: list[list[int]]
    options: AblateSettings
    system: str | None

    @classmethod
    def of(
        cls,
        terminal: Terminal,
        lm: "LanguageModel",
        prompts: tuple[PromptSet, PromptSet, PromptSet],
        options: AblateSettings,
        system: str | None,
    ) -> "Comparison":
        """The comparison on some prompts."""
        from dct.scoring import Reading
        from dct.wordpair import words as compare

        completed, scored, harmless = prompts
        compared = compare(lm, options.positive, options.negative, system)
        for text in compared.notes:
            terminal.note(text)

        def read() -> "Reading":
            return Reading.of(lm, compared, scored.texts, harmless.texts, system)

        probes = [row for one in prompts for row in lm.encode(one.texts, system)]
        return cls(terminal, lm, completed, read, compared, probes, options, system)

    def look(self, directions: "Tensor") -> State:
        """The model as it is, but for what it says."""
        from dct.ablation import leak

        return State(self.read(), leak(self.lm, directions, self.probes), [])

    def complete(self) -> list[str]:
        """What the model says as it is."""
        from dct.generation import complete

        ids = self.lm.encode(self.completed.texts, self.system)
        return complete(self.lm, ids, max_new_tokens=self.options.max_new_tokens)

    def edited(
        self, directions: "Tensor", saving: SaveSettings, about: dict[str, Any]
    ) -> tuple[State, "Reading", "Ablation", "Saved | None"]:
        """The model without the directions, its scores without as many random ones, and the folder it was saved to."""
        from dct.ablation import ablate as ablated
        from dct.ablation import leak
        from dct.calibration import random_directions
        from dct.saving import save

        lm, saved = self.lm, None
        with self.terminal.busy("ablating"), ablated(lm, directions, fold_norms=saving.save is not None) as done:
            reading, texts = self.read(), self.complete()
            after = State(reading, leak(lm, directions, self.probes), texts)
            if saving.save is not None:
                saved = save(lm, saving.save, done, dtype=saving.save_dtype, form=saving.save_as, about=about)
        random = random_directions(len(directions), lm.width, self.options.seed + 2)
        with self.terminal.busy("random directions"), ablated(lm, random):
            return after, self.read(), done, saved

    def expected(self, scored: float) -> "Cost":
        """What is left to do: completions before and after, and twice what scoring the unedited model took."""
        from dct.estimate import completions_seconds, cost
        from dct.generation import complete, completion_bytes, usual_length

        lm, tokens = self.lm, self.options.max_new_tokens
        ids = lm.encode(self.completed.texts, self.system)

        def say(size: int, length: int) -> None:
            complete(lm, ids[:size], max_new_tokens=length)

        length = usual_length(lm, ids[0], tokens)
        spent = completions_seconds(say, 2 * len(ids), len(ids), length, lm.device)
        more = completion_bytes(lm, len(ids), max(map(len, ids)) + tokens)
        return cost(spent + 2 * scored, more, lm.device, lm.memory)
