"""`dct spectrum`: which input directions act together on an output of a run's slice, or on any."""

import time
from pathlib import Path
from typing import Annotated

from dct.cli.pictures import check_plot, save_plot
from dct.cli.signature import argument
from dct.cli.spectrumtables import show_spectrum, show_terms
from dct.cli.spectrumwork import Work
from dct.cli.terminal import Terminal, command
from dct.cli.work import RUN_HELP, open_run
from dct.errors import DctError, UsageError
from dct.settings import RunModelSettings, SpectrumOutputSettings, SpectrumSettings


@command
def spectrum(
    model: RunModelSettings,
    options: SpectrumSettings,
    output: SpectrumOutputSettings,
    run: Annotated[Path | None, argument(RUN_HELP)] = None,
) -> None:
    """Show which input directions act together on an output: eigenvectors of a slice's second derivatives.

    The output is what a vector causes (--vector 17) or a word (--token Sure); without one, the outputs are found too.
    """
    terminal = Terminal(output.json, output.quiet)
    _check(options, output)
    opened, factors, lm = open_run(terminal, run, model, force=output.force)
    from dct.perturbation import vectors_alone

    vectors_alone(factors.info, "a spectrum", "fit vectors between these layers with another `method`")
    work = Work(terminal, lm, factors, options)
    began = time.monotonic()
    if options.vector is None and options.token is None:
        content = work.terms()
    else:
        content, found = work.one()
        if output.out is not None:
            content["out"] = str(work.saved(found, output.out))
    content["seconds"] = round(time.monotonic() - began, 2)
    from dct.plots import figures
    from dct.spectrumfile import keep

    kept = keep(opened, factors, content)
    save_plot(terminal, output.plot, lambda: [figures.spectrum(content)])
    show = show_spectrum if "eigenvectors" in content else show_terms
    show(terminal, content, str(kept))
    terminal.result(content)


def _check(options: SpectrumSettings, output: SpectrumOutputSettings) -> None:
    """Refuses, before any work, what does not go together.

    Raises:
        UsageError, DctError: two outputs; eigenvectors to be written where there is none, or where a run is.
    """
    from dct.runs import FACTORS

    check_plot(output.plot)
    if options.vector is not None and options.token is not None:
        raise UsageError("give one output: `vector` or `token`", argument="token")
    if output.out is not None and options.vector is None and options.token is None:
        raise UsageError("`out` takes the eigenvectors of one output: add `vector` or `token`", argument="out")
    if output.out is not None and (output.out / FACTORS).exists():
        raise DctError(f"{output.out} holds a run already: name another folder as `out`")
