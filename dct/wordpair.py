"""The two texts whose likelihoods tell what a vector does, as tokens of a model.

Knows a model's tokenizer and nothing of vectors. Which texts are compared, where nobody says, `openings` decides.
"""

from dataclasses import dataclass, replace

from dct.errors import DctError
from dct.model import LanguageModel


@dataclass(frozen=True)
class Words:
    """Two continuations of a prompt, words or longer texts, as tokens.

    Attributes:
        positive, negative: token ids, from the first that differs on.
        shown_positive, shown_negative: as text; where one token each decides, that token.
        after: tokens that both begin with; they cancel, and are put behind each prompt once.
        notes: what the user should know.
    """

    positive: tuple[int, ...]
    negative: tuple[int, ...]
    shown_positive: str
    shown_negative: str
    after: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def single(self) -> bool:
        """Whether one token each decides: their likelihood ratio is the difference of two logits of one pass."""
        return len(self.positive) == len(self.negative) == 1

    @property
    def label(self) -> str:
        """What is compared, as a heading."""
        kind = "logit" if self.single else "log p"
        return f"{kind}({self.shown_positive}) − {kind}({self.shown_negative})"

    def noted(self, text: str) -> "Words":
        """The same, with something more to know, said first."""
        return replace(self, notes=(text, *self.notes))


def words(lm: LanguageModel, positive: str, negative: str, system: str | None = None) -> Words:
    """The tokens of two texts of any length, without those that both begin with.

    Raises:
        DctError: a text has no tokens, or one begins with the other.
    """
    a, b = lm.continuation(positive, system), lm.continuation(negative, system)
    if not a or not b:
        raise DctError(f"{positive if not a else negative!r} has no tokens: choose another word to score")
    shared = 0
    while shared < min(len(a), len(b)) and a[shared] == b[shared]:
        shared += 1
    if shared == min(len(a), len(b)):
        raise DctError(
            f"no token tells {positive!r} from {negative!r} (one begins with the other): choose other words with "
            "`positive` and `negative`"
        )
    found = Words(tuple(a[shared:]), tuple(b[shared:]), positive, negative, tuple(a[:shared]), ())
    if not found.single:
        return found
    shown = [str(lm.tokenizer.convert_ids_to_tokens(ids[shared])) for ids in (a, b)]
    notes: tuple[str, ...] = ()
    if shared:
        notes = (
            f"{positive!r} and {negative!r} share their first {shared} token(s): "
            f"scored behind them, {shown[0]!r} against {shown[1]!r}",
        )
    return replace(found, shown_positive=shown[0], shown_negative=shown[1], notes=notes)
