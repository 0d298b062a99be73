"""The two words whose logits tell what a vector does, as tokens of a model.

Knows a model's tokenizer and nothing of vectors.
"""

from dataclasses import dataclass

from dct.errors import DctError
from dct.model import LanguageModel


@dataclass(frozen=True)
class Words:
    """The two words whose logits are compared, as tokens.

    Attributes:
        positive, negative: token ids.
        shown_positive, shown_negative: the tokens as text.
        after: tokens that both words begin with; they are put behind each prompt, so that the next token decides.
    """

    positive: int
    negative: int
    shown_positive: str
    shown_negative: str
    after: tuple[int, ...]
    notes: tuple[str, ...]


def words(lm: LanguageModel, positive: str, negative: str, system: str | None = None) -> Words:
    """The tokens that tell two words apart.

    Of a word of several tokens the first counts; where both words begin alike, the first token that differs does,
    behind the tokens that they share. `notes` says so.

    Raises:
        DctError: a word has no tokens, or no token tells the words apart.
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
    shown = [str(lm.tokenizer.convert_ids_to_tokens(ids[shared])) for ids in (a, b)]
    notes = []
    if shared:
        notes.append(
            f"{positive!r} and {negative!r} share their first {shared} token(s): "
            f"scored behind them, {shown[0]!r} against {shown[1]!r}"
        )
    else:
        for word, ids, token in zip((positive, negative), (a, b), shown, strict=True):
            if len(ids) > 1:
                notes.append(f"{word!r} is {len(ids)} tokens; its first, {token!r}, is scored")
    return Words(a[shared], b[shared], shown[0], shown[1], tuple(a[:shared]), tuple(notes))
