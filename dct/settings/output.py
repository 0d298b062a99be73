"""What is shown, and where results go."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dct.declaration import (
    Settings,
    setting,
)


@dataclass(repr=False, eq=False, match_args=False)
class OutputSettings(Settings):
    """What is shown and where; no part of a run's record."""

    table: ClassVar[str] = "output"
    title: ClassVar[str] = "Output"

    config: Path | None = setting(
        None, "Options from this TOML file, such as a run's config.toml; those on the command line come first."
    )
    json: bool = setting(False, "Machine-readable result on stdout, all else on stderr.")
    quiet: bool = setting(False, "Say only what went wrong.", short="q")
    debug: bool = setting(False, "Show tracebacks.")


PICTURE = "Also draw the main figure into this .svg or .png file (PNG needs matplotlib: the extra `bench`)."


@dataclass(repr=False, eq=False, match_args=False)
class FitOutputSettings(OutputSettings):
    """Where a fit goes."""

    command: ClassVar[str] = "fit"

    out: Path | None = setting(None, "Run folder.", shown="a new one under runs/")
    resume: bool = setting(False, "Go on with an interrupted fit (in its run folder, or the newest), as it was begun.")
    force: bool = setting(False, "Overwrite a run.")
    plot: Path | None = setting(None, PICTURE)


@dataclass(repr=False, eq=False, match_args=False)
class RunOutputSettings(OutputSettings):
    """Output of a command that uses a run."""

    command: ClassVar[str] = "run"

    force: bool = setting(False, "Use factors on another model than they were fitted on.")


@dataclass(repr=False, eq=False, match_args=False)
class RankOutputSettings(RunOutputSettings):
    """Output of a ranking."""

    command: ClassVar[str] = "rank"

    plot: Path | None = setting(None, PICTURE)


@dataclass(repr=False, eq=False, match_args=False)
class FileOutputSettings(OutputSettings):
    """Output that may also go to a file."""

    command: ClassVar[str] = "calibrate"

    out: Path | None = setting(None, "Also write the result to this file.")
    plot: Path | None = setting(None, PICTURE)


@dataclass(repr=False, eq=False, match_args=False)
class SteerOutputSettings(RunOutputSettings):
    """Output of completions."""

    command: ClassVar[str] = "steer"

    out: Path | None = setting(None, "Also write the completions to this JSONL file.")


@dataclass(repr=False, eq=False, match_args=False)
class ReportOutputSettings(OutputSettings):
    """Where a page goes."""

    command: ClassVar[str] = "report"

    out: Path | None = setting(None, "The page.", shown="report.html in the run folder")


@dataclass(repr=False, eq=False, match_args=False)
class CompareOutputSettings(OutputSettings):
    """Where a comparison goes."""

    command: ClassVar[str] = "compare"

    out: Path | None = setting(None, "Also write the result to this JSON file.")


@dataclass(repr=False, eq=False, match_args=False)
class JudgeOutputSettings(OutputSettings):
    """Output of verdicts."""

    command: ClassVar[str] = "judge"

    out: Path | None = setting(None, "Also write the records with their verdicts to this JSONL file.")


@dataclass(repr=False, eq=False, match_args=False)
class BenchOutputSettings(OutputSettings):
    """Where tables and figures go."""

    command: ClassVar[str] = "bench"

    out: Path | None = setting(None, "Results folder.", shown="runs/bench-MODEL")
    figures: bool = setting(True, "Draw figures (needs matplotlib).")
    force: bool = setting(False, "Measure again what is on record.")


@dataclass(repr=False, eq=False, match_args=False)
class PlantedOutputSettings(OutputSettings):
    """Where the recovery of planted factors goes."""

    command: ClassVar[str] = "planted"

    out: Path = setting(Path("runs/bench-planted"), "Results folder.")
    force: bool = setting(False, "Measure again what is on record.")


@dataclass(repr=False, eq=False, match_args=False)
class DemoOutputSettings(OutputSettings):
    """Where the tour goes."""

    command: ClassVar[str] = "demo"

    out: Path = setting(Path("runs/demo"), "Run folder; an earlier demo in it is replaced.")


@dataclass(repr=False, eq=False, match_args=False)
class ScanOutputSettings(OutputSettings):
    """Where a scan goes."""

    command: ClassVar[str] = "scan"

    out: Path = setting(Path("scan.json"), "The scan; one that was cut goes on from this file.")
    plot: Path | None = setting(None, "Also draw it into this SVG file.")


@dataclass(repr=False, eq=False, match_args=False)
class SpectrumOutputSettings(RunOutputSettings):
    """Where a spectrum goes."""

    command: ClassVar[str] = "spectrum"

    out: Path | None = setting(None, "Also write the eigenvectors as a run to this folder: rank and steer take it.")
    plot: Path | None = setting(None, PICTURE)


@dataclass(repr=False, eq=False, match_args=False)
class SweepOutputSettings(OutputSettings):
    """Where a sweep goes."""

    command: ClassVar[str] = "sweep"

    out: Path = setting(
        Path("runs/sweep"), "The sweep's folder, a run folder for each fit in it; what is finished there is kept."
    )
    plot: Path | None = setting(None, PICTURE)
