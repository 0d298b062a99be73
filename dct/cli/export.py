"""`dct export`: a vector as a file that another program reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.aliases import DEMO
from dct.cli.signature import argument
from dct.cli.terminal import Terminal, command, escape
from dct.cli.vectors import chosen_vectors
from dct.cli.work import RUN_HELP, open_run
from dct.errors import DctError
from dct.exporting import ABLATION, ADDITION, Format, Parcel, check, check_kind, format_named
from dct.exporting import export as write
from dct.settings import ExportOutputSettings, ExportSettings, RunModelSettings, VectorSettings

if TYPE_CHECKING:
    from torch import Tensor

    from dct.exporting import Exported
    from dct.factors import Factors
    from dct.model import LanguageModel
    from dct.runs import Run


@command
def export(
    model: RunModelSettings,
    vectors: VectorSettings,
    options: ExportSettings,
    output: ExportOutputSettings,
    run: Annotated[Path | None, argument(RUN_HELP)] = None,
) -> None:
    """Write vectors as files that llama.cpp, PEFT, transformers, vLLM or numpy read, with a card.

    R is in the numbers: strength 1 is the scale of the ranking, or R. The weights are read for peft and transformers
    alone.
    """
    from dct.publishing import check_name, push

    terminal = Terminal(output.json, output.quiet)
    how = format_named(options.format)
    _check(how, options)
    if options.push_to_hub is not None:
        check_name(options.push_to_hub)
    found, factors, lm, kind = _opened(terminal, run, model, how, options.ablate, output.force)
    parcel = _parcel(terminal, found, factors, vectors, options, (lm, kind))
    check(parcel, how)
    out = output.out if output.out is not None else found.folder / _name(how, parcel)
    with terminal.busy(f"writing {out}"):
        done = write(parcel, how, out, replace=output.force)
    pushed = None
    if options.push_to_hub is not None:
        _warn_of_paths(terminal, done)
        with terminal.busy(f"pushing to {options.push_to_hub}"):
            pushed = push(done.folder, options.push_to_hub, public=options.public)
    _conclude(terminal, parcel, done, pushed)
    norms = None if parcel.ablate else parcel.norms
    about = {"vectors": parcel.names, "layer": parcel.layer, "norms": norms, "ablate": parcel.ablate}
    terminal.result({**done.describe(), **about, "pushed": pushed})


def _check(how: Format, options: ExportSettings) -> None:
    """Refuses what makes no sense before anything is opened.

    Raises:
        UsageError: a scale of an ablation; a type of weights where there are none.
    """
    from dct.errors import UsageError

    if options.ablate and options.scale != 1.0:
        raise UsageError("an ablation takes all of a direction out: leave `scale` out", argument="scale")
    if options.save_dtype != "auto" and not how.weights:
        raise UsageError(f"{how.name} is float32: leave `save_dtype` out", argument="save_dtype")
    if options.public and options.push_to_hub is None:
        raise UsageError("`public` is of a repository: say which as `push_to_hub`", argument="public")


def _opened(
    terminal: Terminal, where: Path | None, model: RunModelSettings, how: Format, ablate: bool, force: bool
) -> tuple["Run", "Factors", "LanguageModel | None", str]:
    """The run, its factors, the model where its weights are needed, and the type of model."""
    from dct.factors import Factors
    from dct.runs import find_run

    run = find_run(where)
    factors = Factors.load(run.factors)
    rank_one = bool(factors.info.get("perturbation"))
    check_kind(how, rank_one, ablate)
    if rank_one or (ABLATION if ablate else ADDITION) in how.weights:
        run, factors, lm = open_run(terminal, where, model, None, force)
        return run, factors, lm, str(lm.model.config.model_type)
    return run, factors, None, _kind(terminal, factors, model, force)


def _kind(terminal: Terminal, factors: "Factors", model: RunModelSettings, force: bool) -> str:
    """The model's type by its configuration; empty, and said aloud, where that cannot be had.

    Raises:
        DctError: the model is of another width than the vectors.
    """
    from dct.opening import opened

    name = str(model.model or factors.info.get("model") or DEMO)
    loading = factors.info.get("loading")
    revision = loading.get("revision") if isinstance(loading, Mapping) else None
    try:
        layers = str(factors.info.get("layers") or "")
        trusting = model.trust_remote_code
        checkpoint, _, _ = opened(name, layers=layers, revision=revision, trust_remote_code=trusting)
    except DctError as error:
        if model.model is not None:
            raise
        terminal.note(f"the configuration of {name} cannot be read, and the vectors do not need it ({error})")
        return ""
    width, own = checkpoint.config.get_text_config().hidden_size, factors.V.shape[1]
    if width != own and not force:
        raise DctError(f"these factors have width {own} and {name} has {width}: pass the right `model`")
    if not checkpoint.text_alone:
        terminal.warn(f"{name} has other towers beside text: some programs count its width differently")
    return str(checkpoint.config.model_type)


def _parcel(
    terminal: Terminal,
    run: "Run",
    factors: "Factors",
    vectors: VectorSettings,
    options: ExportSettings,
    model: tuple["LanguageModel | None", str],
) -> Parcel:
    """What was chosen, with the norms that it is added at."""
    import torch

    from dct.candidates import chosen
    from dct.perturbation import RankOne, recorded, vectors_alone

    if factors.info.get("source") is None:
        raise DctError("these factors do not say at which layer they were fitted: set info['source'] before saving")
    picked = chosen_vectors(run, vectors)
    names = list(picked)
    norms = [options.scale * (norm or factors.scale) for norm in picked.values()]
    directions = torch.stack([chosen(factors, name) for name in names])
    changes = recorded(factors.info, directions.shape[1])
    if isinstance(changes, RankOne):
        directions = changes.scaled(directions, torch.tensor(norms).sign())
        norms = [abs(norm) for norm in norms]
    if vectors.aggregate is not None:
        vectors_alone(factors.info, "`aggregate`", "choose one with `vector`")
        directions = _aggregated(terminal, directions, vectors.aggregate)
        names, norms = [f"{vectors.aggregate} of {', '.join(names)}"], [sum(norms) / len(norms)]
    ranking = None
    if run.ranking.exists():
        try:
            ranking = run.load_ranking()
        except DctError as error:
            terminal.warn(f"the card goes without scores: {error}")
    lm, kind = model
    return Parcel(
        directions,
        norms,
        names,
        int(factors.info["source"]),
        options.ablate,
        {**factors.info, "scale": factors.scale},
        kind,
        lm,
        ranking,
        options.save_dtype,
        changes if isinstance(changes, RankOne) else None,
    )


def _aggregated(terminal: Terminal, directions: "Tensor", how: str) -> "Tensor":
    """One direction for all. Of the two senses of an SVD direction the one that most of the vectors' sum agrees with:
    nothing is scored here."""
    from dct.candidates import aggregate

    found = aggregate(directions, how)
    if len(found) > 1:
        terminal.note("an SVD direction has no sign: the sense that the vectors' sum agrees with is exported")
        found = found[(found @ directions.sum(0)).argmax()][None]
    return found


def _name(how: Format, parcel: Parcel) -> str:
    """A folder for it, beside the factors."""
    words = parcel.names[0] if len(parcel.names) == 1 else f"{len(parcel.names)}-vectors"
    plain = "".join(c if c.isalnum() or c == "-" else "-" for c in words.replace(", ", "-").replace(" ", "-"))[:60]
    return f"export-{how.name}-{'ablate-' if parcel.ablate else ''}{plain}"


def _warn_of_paths(terminal: Terminal, done: "Exported") -> None:
    """Says where files that are about to be public name a folder of this machine."""
    for name in ("adapter_config.json", "dct.json"):
        path = done.folder / name
        if path.is_file() and any(f'"{start}' in path.read_text(encoding="utf-8") for start in ("/", "~", "C:\\\\")):
            terminal.warn(f"{name} names a folder of this machine: it goes to the hub as it is")


def _conclude(terminal: Terminal, parcel: Parcel, done: "Exported", pushed: str | None) -> None:
    """What was written, what to know of it, and where."""
    for remark in done.written.remarks:
        terminal.note(remark)
    what = ", ".join(parcel.names[:4]) + ("…" if len(parcel.names) > 4 else "")
    rows: list[tuple[str, Any]] = [("written", f"[bold]{escape(str(done.folder))}[/bold]")]
    rows.append(("files", escape(", ".join(done.files[:8]) + ("…" if len(done.files) > 8 else ""))))
    if parcel.changes is not None:
        rows.append(("changed", f"{parcel.site}, R {parcel.norms[0]:.4g}"))
    elif not parcel.ablate:
        rows.append(("added", f"at layer {parcel.layer}, norm {', '.join(f'{n:.4g}' for n in parcel.norms[:4])}"))
    rows += [(name, escape(value)) for name, value in done.written.facts.items()]
    if pushed is not None:
        rows.append(("pushed", escape(pushed)))
    rows.append(("next", f"[bold cyan]{escape(str(done.folder / 'README.md'))}[/bold cyan]  says how it is opened"))
    terminal.summary(f"{'ablation of' if parcel.ablate else 'vector'} {what} as {done.format}", rows)
