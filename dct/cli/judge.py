"""`dct judge`: what each reply in a file does, by a judge of one's choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.cli.signature import argument
from dct.cli.terminal import Terminal, command, escape, titled
from dct.errors import DctError, UsageError
from dct.judging import COMPLIED, LABELS, Judge, Reply, Verdict, kind_of, wilson
from dct.plainjson import dumps
from dct.prompt_files import kind, parse
from dct.settings import JudgeModelSettings, JudgeOutputSettings, JudgeSettings

if TYPE_CHECKING:
    from rich.table import Table

UNSTEERED = "unsteered"
"""What `dct steer --out` calls the rows of the model left alone."""


@dataclass(frozen=True)
class Record:
    """A line of the file, with the reply that stands in it."""

    row: dict[str, Any]
    reply: Reply

    @property
    def vector(self) -> str:
        """What steered it, where the file says."""
        return str(self.row.get("vector") or "")


@command
def judge(
    options: JudgeSettings,
    model: JudgeModelSettings,
    output: JudgeOutputSettings,
    file: Annotated[Path, argument("JSONL file of prompt, completion and, where known, unsteered; or of steer --out.")],
) -> None:
    """Say what each reply in a file does: complies, refuses or neither, and whether it is coherent.

    Counts come with Wilson's 95% intervals. A success is the wanted label and coherent text.
    """
    terminal = Terminal(output.json, output.quiet)
    chosen = kind_of(options.judge)
    given = own_options(chosen, options.judge_option)
    if model.model is not None and not chosen.uses_model:
        raise UsageError(f"the judge {chosen.name} uses no model: leave `model` out", argument="model")
    records = read(file)
    judging = chosen(_loaded(terminal, model) if model.model is not None else None, **given)
    with terminal.busy(f"judging {len(records)} replies"):
        verdicts = judging.verdicts([one.reply for one in records])
    content = [
        {"label": v.label, "coherent": v.coherent, "why": v.why, **({"vector": one.vector} if one.vector else {})}
        for one, v in zip(records, verdicts, strict=True)
    ]
    _show(terminal, judging, records, verdicts)
    if output.out is not None:
        from dct.writing import write_whole

        said = ({**one.row, "label": v.label, "coherent": v.coherent, "why": v.why}
                for one, v in zip(records, verdicts, strict=True))  # fmt: skip
        write_whole(output.out, "".join(dumps(row, strict=False) + "\n" for row in said).encode())
        terminal.note(f"written to {output.out}")
    terminal.result(content)


def read(file: Path) -> list[Record]:
    """The replies of a file, each beside the unsteered one to its prompt where the file has that.

    Raises:
        DctError: it cannot be read, or a record has no prompt or no completion.
    """
    if not file.is_file():
        raise DctError(f"there is no file {file}: give a JSONL file of prompts and completions")
    rows = parse(file)
    if not rows:
        raise DctError(f"{file} holds no records: each needs `prompt` and `completion`")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DctError(f"record {number} of {file} is {kind(row)}: each needs a prompt and a completion")
        for name in ("prompt", "completion", UNSTEERED):
            needed = name != UNSTEERED
            if not isinstance(row.get(name), str) and (needed or row.get(name) is not None):
                what = f"is {kind(row[name])} and no text" if name in row else "is missing"
                raise DctError(f"record {number} of {file}: {name} {what}")
    alone = {row["prompt"]: row["completion"] for row in rows if row.get("vector") == UNSTEERED}
    found = []
    for row in rows:
        unsteered = row.get(UNSTEERED)
        unsteered = alone.get(row["prompt"]) if unsteered is None else unsteered
        found.append(Record(row, Reply(row["prompt"], row["completion"], unsteered)))
    return found


def own_options(kind: type[Judge], texts: Sequence[str]) -> dict[str, Any]:
    """A judge's own options as the command line has them, name=value, as values of the types of their defaults.

    Raises:
        UsageError: a value that cannot be read as one, or an option that stands there twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        name = name.strip()
        if name in found:
            raise UsageError(f"`judge_option`: {name} stands there twice", argument="judge_option")
        found[name] = _read(kind.options.get(name), value)
    return found


def _read(default: Any, value: str) -> Any:
    """Text as a value of the type of a default; as it is where that cannot be, for the judge to refuse."""
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(value, value)
    if isinstance(default, int | float):
        try:
            return type(default)(value)
        except ValueError:
            return value
    return value


def _loaded(terminal: Terminal, model: JudgeModelSettings) -> Any:
    from dct.cli.work import load_model

    options = {name: value for name, value in vars(model).items() if name not in ("model", "memory")}
    return load_model(terminal, str(model.model), model.memory, **options)


def _show(terminal: Terminal, judging: Judge, records: Sequence[Record], verdicts: Sequence[Verdict]) -> None:
    """Counts of all replies, and by vector where there are several."""
    groups: dict[str, list[Verdict]] = {}
    for one, verdict in zip(records, verdicts, strict=True):
        groups.setdefault(one.vector, []).append(verdict)
    rows = {"all": list(verdicts), **(groups if len(groups) > 1 else {})}
    terminal.show(_table(rows))
    done = [v for v in verdicts if v.label == COMPLIED and v.coherent]
    terminal.summary(
        f"{len(verdicts)} replies judged by {judging.name}",
        [("success", f"{_share(len(done), len(verdicts))} complied and are coherent")],
    )


def _table(rows: dict[str, list[Verdict]]) -> "Table":
    table = titled("counts, with 95% intervals of their shares (Wilson); success: complied and coherent")
    table.add_column("vector" if len(rows) > 1 else "")
    for heading in ("replies", *LABELS, "coherent", "success"):
        table.add_column(heading, justify="right")
    for name, found in rows.items():
        n = len(found)
        counted = [sum(v.label == label for v in found) for label in LABELS]
        counted.append(sum(v.coherent for v in found))
        counted.append(sum(v.coherent and v.label == COMPLIED for v in found))
        table.add_row(escape(name or "–"), str(n), *(_share(k, n) for k in counted), end_section=name == "all")
    return table


def _share(found: int, of: int) -> str:
    """A count with its interval: "12 34-71%"."""
    low, high = wilson(found, of)
    return f"{found} {100 * low:.0f}–{100 * high:.0f}%"
