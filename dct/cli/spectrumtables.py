"""A spectrum on the screen: a table, and what it comes to."""

from typing import TYPE_CHECKING, Any

from dct.cli.terminal import Terminal, escape, human_seconds, plain, titled

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 10
"""Eigenvectors in the table; all of them are in the file."""

WORDS = 3


def show_spectrum(terminal: Terminal, content: dict[str, Any], kept: str) -> None:
    """The eigenvectors of one output, and how few of them suffice."""
    terminal.show(_eigenvectors(content))
    if terminal.roomy:
        from dct.plots.text import bars

        terminal.plot(bars([one["at_R"] for one in content["eigenvectors"]]))
    agreement, bound = content["agreement"], content["correlation"]
    random, own = agreement["random"], agreement["vectors"]
    count, dim = len(content["values"]), content["chance"]["rank"]
    edge = abs(content["values"][0]) / content["chance"]["edge"]
    rows = [
        (
            "rank",
            f"{_rank(content['rank'], count)}: so many eigenvectors tell the whole form to a correlation of {bound:g}; "
            f"of a random output {_rank(content['random_output']['rank'], count)}, of a random matrix {dim}",
        ),
        (
            "strongest",
            f"{edge:.2f} times the largest eigenvalue that a random matrix of the same norm has; a random output's is "
            f"{plain(abs(content['random_output']['values'][0]))} against {plain(abs(content['values'][0]))}",
        ),
        ("form", f"tells the even part of the true response to {_both(random, own, 'whole')}"),
        ("response", f"first order tells it to {_both(random, own, 'linear')}, with the form to "
         f"{_both(random, own, 'second')}; its even part is {random['share']:.0%} and {own['share']:.0%} of it"),
        ("found", f"{content['products']} products{'' if content['exact'] else ' (Lanczos)'}, largest residual "
         f"{max(one['residual'] for one in content['eigenvectors']):.1e}; {human_seconds(content['seconds'])}"),
        ("points to", escape(" ".join(content["causes"]["more"]) or "nothing")),
        ("kept", escape(kept)),
    ]  # fmt: skip
    if "out" in content:
        rows.append(("next", f"[bold cyan]dct rank {escape(content['out'])}[/bold cyan]: do they steer?"))
    else:
        rows.append(("next", "[bold cyan]--out FOLDER[/bold cyan] makes a run of them, for dct rank and dct steer"))
    terminal.summary(f"{content['output']}: what acts together on it", rows)


def _rank(rank: int | None, known: int) -> str:
    return f"more than {known}" if rank is None else str(rank)


def _both(random: dict[str, Any], own: dict[str, Any], key: str) -> str:
    return f"{random[key]:.2f} over {random['inputs']} random inputs, {own[key]:.2f} over the run's own vectors"


def _eigenvectors(content: dict[str, Any]) -> "Table":
    R = content["scale"]
    table = titled(f"on {escape(content['output'])}, layers {content['source']} to {content['target']}, R = {R:.3g}")
    for heading in ("", "½R²λ", "true", "linear", "corr"):
        table.add_column(heading, justify="right")
    own = content["eigenvectors"][0]["own"] is not None
    table.add_column("|cos v|" if own else "nearest", justify="right")
    for heading in ("+q makes likelier", "−q makes likelier"):
        table.add_column(heading, ratio=1)
    for k, one in enumerate(content["eigenvectors"][:SHOWN]):
        names = [escape(" ".join(one["names"][sense]["more"][:WORDS])) for sense in ("plus", "minus")]
        near = f"{abs(one['own']):.2f}" if own else f"{one['nearest']['vector']}: {abs(one['nearest']['cosine']):.2f}"
        numbers = [f"{plain(one[key])}" for key in ("at_R", "even", "linear")]
        table.add_row(str(k), *numbers, f"{content['captured'][k]:.2f}", near, *names)
    return table


def show_terms(terminal: Terminal, content: dict[str, Any], kept: str) -> None:
    """The terms of the decomposition without an output."""
    table = titled(f"second derivatives of layers {content['source']} to {content['target']}")
    for heading in ("", "σ", "left out", "rank"):
        table.add_column(heading, justify="right")
    for heading in ("points to", "first input makes likelier, + / −"):
        table.add_column(heading, ratio=1)
    for k, one in enumerate(content["terms"]):
        first = one["inputs"][0]
        senses = " / ".join(" ".join(first[sense]["more"][:WORDS]) for sense in ("plus", "minus"))
        words = (escape(" ".join(one["causes"]["more"][:WORDS])), escape(senses))
        table.add_row(str(k), plain(one["sigma"]), f"{one['left']:.2f}", str(one["rank"]), *words)
    terminal.show(table)
    last, norm = content["terms"][-1], f"|T2| = {plain(content['norm'])}, its square ± {content['norm_error']:.0%}"
    what = f"{len(content['terms'])} outputs and {content['inputs']} inputs"
    rows = [
        ("left out", f"{last['left']:.0%} by {what} ({norm})"),
        ("found", f"{content['products']} products; {human_seconds(content['seconds'])}"),
        ("kept", escape(kept)),
        ("next", "[bold cyan]dct spectrum --vector 17[/bold cyan] takes one output apart"),
    ]
    terminal.summary(f"{len(content['terms'])} terms of the second derivatives", rows)
