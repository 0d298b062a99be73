"""A judge as a scorer of inspect-ai: `dct/judge`, which inspect-ai finds by an entry point. Needs inspect-ai.

inspect score LOG.eval --scorer dct/judge -S judge=refusal -S wanted=refused
"""

from typing import Any

from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState

from dct import judging
from dct.errors import UsageError
from dct.judging import COMPLIED, LABELS


@scorer(metrics=[accuracy(), stderr()], name="judge")  # type: ignore[untyped-decorator, unused-ignore]
def judged(judge: str = "refusal", wanted: str = COMPLIED, **options: Any) -> Scorer:
    """Correct is a reply with the wanted label that is coherent text.

    Args:
        judge: its name.
        wanted: the label that counts as a success.
        options: of the judge's own.

    Raises:
        UsageError: as in `dct.judging.judge`; a label that is none.
    """
    if wanted not in LABELS:
        raise UsageError(f"unknown `wanted` {wanted!r}: choose {', '.join(LABELS)}", argument="wanted")
    reading = judging.judge(judge, **options)

    async def score(state: TaskState, target: Target) -> Score:
        """The verdict on a sample's reply; `unsteered` in its metadata is what the model says by itself."""
        verdict = reading.verdict(state.input_text, state.output.completion, state.metadata.get("unsteered"))
        success = verdict.label == wanted and verdict.coherent
        return Score(
            value=CORRECT if success else INCORRECT,
            answer=state.output.completion,
            explanation=verdict.why,
            metadata={"label": verdict.label, "coherent": verdict.coherent},
        )

    return score
