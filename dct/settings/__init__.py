"""Every option of the package, each declared once: `dct.declaration` says what becomes of a declaration.

A group is a table of a TOML file, a panel of a help page and an argument of the functions that it is for. Knows no
torch: a help page is made of this alone, and has no time for methods that `Settings` has anyway.
"""

from dct.declaration import Settings
from dct.settings.adapt import AdaptSettings
from dct.settings.export import ExportOutputSettings, ExportSettings
from dct.settings.fit import METHODS, CalibrationSettings, FitSettings, SeedSettings
from dct.settings.judge import JudgeModelSettings, JudgeSettings
from dct.settings.model import (
    BenchPromptSettings,
    FitPromptSettings,
    FitSliceSettings,
    LayerSettings,
    ModelSettings,
    PromptSettings,
    RankPromptSettings,
    ReplyPromptSettings,
    RunModelSettings,
    ScanSliceSettings,
    SliceSettings,
    WeightSettings,
    positions_of,
)
from dct.settings.organism import EvaluateSettings, TrainSettings
from dct.settings.output import (
    BenchOutputSettings,
    CompareOutputSettings,
    DemoOutputSettings,
    FileOutputSettings,
    FitOutputSettings,
    JudgeOutputSettings,
    OutputSettings,
    PlantedOutputSettings,
    RankOutputSettings,
    ReportOutputSettings,
    RunOutputSettings,
    ScanOutputSettings,
    SpectrumOutputSettings,
    SteerOutputSettings,
    SweepOutputSettings,
)
from dct.settings.planted import PlantedSettings
from dct.settings.scan import ScanSettings
from dct.settings.spectrum import SpectrumSettings
from dct.settings.sweep import (
    SweepExperimentSettings,
    SweepFitSettings,
    SweepModelSettings,
    SweepPromptSettings,
    SweepSettings,
    SweepSliceSettings,
)
from dct.settings.use import (
    AblateSettings,
    BenchSettings,
    ChatSettings,
    CompareSettings,
    ContestSettings,
    RankSettings,
    SaveSettings,
    ScoreSettings,
    SelectSettings,
    ServeSettings,
    SteerSettings,
    TaskSettings,
    VectorSettings,
    VerifySettings,
)
from dct.settings.work import WorkSettings

__all__ = [
    "GROUPS",
    "METHODS",
    "AblateSettings",
    "AdaptSettings",
    "BenchOutputSettings",
    "BenchPromptSettings",
    "BenchSettings",
    "CalibrationSettings",
    "ChatSettings",
    "CompareOutputSettings",
    "CompareSettings",
    "ContestSettings",
    "DemoOutputSettings",
    "EvaluateSettings",
    "ExportOutputSettings",
    "ExportSettings",
    "FileOutputSettings",
    "FitOutputSettings",
    "FitPromptSettings",
    "FitSettings",
    "FitSliceSettings",
    "JudgeModelSettings",
    "JudgeOutputSettings",
    "JudgeSettings",
    "LayerSettings",
    "ModelSettings",
    "OutputSettings",
    "PlantedOutputSettings",
    "PlantedSettings",
    "PromptSettings",
    "RankOutputSettings",
    "RankPromptSettings",
    "RankSettings",
    "ReplyPromptSettings",
    "ReportOutputSettings",
    "RunModelSettings",
    "RunOutputSettings",
    "SaveSettings",
    "ScanOutputSettings",
    "ScanSettings",
    "ScanSliceSettings",
    "ScoreSettings",
    "SeedSettings",
    "SelectSettings",
    "ServeSettings",
    "SliceSettings",
    "SpectrumOutputSettings",
    "SpectrumSettings",
    "SteerOutputSettings",
    "SteerSettings",
    "SweepExperimentSettings",
    "SweepFitSettings",
    "SweepModelSettings",
    "SweepOutputSettings",
    "SweepPromptSettings",
    "SweepSettings",
    "SweepSliceSettings",
    "TaskSettings",
    "TrainSettings",
    "VectorSettings",
    "VerifySettings",
    "WeightSettings",
    "WorkSettings",
    "positions_of",
]

GROUPS: tuple[type[Settings], ...] = tuple(
    kind for name, kind in list(vars().items()) if name.endswith("Settings") and name != "Settings"
)
"""Every group of options there is."""
