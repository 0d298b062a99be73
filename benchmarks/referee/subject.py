"""A model under examination, and how findings are counted."""

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import dct
from referee.own import IDS, NoChain, Own, find_blocks, run
from referee.writes import Point, points

SAME = 1e-4
"""Relative error up to which two numbers are the same."""


class Wrong(Exception):  # noqa: N818 (a finding, not an error)
    """Numbers that are not the model's."""


class NothingToCheck(Exception):  # noqa: N818 (a finding, not an error)
    """The check has no meaning for this model; the message says why."""


def relative(got: Tensor, wanted: Tensor, scale: Tensor | None = None) -> float:
    """Size of the difference, relative to what was wanted or to another tensor."""
    if got.shape != wanted.shape:
        raise Wrong(f"shape {tuple(got.shape)} for {tuple(wanted.shape)}")
    size = float((wanted if scale is None else scale).norm())
    error = float((got.double() - wanted.double()).norm()) / max(size, 1e-30)
    return error if error == error else float("inf")


class Tally:
    """The largest error of several comparisons, and the first that is too large."""

    def __init__(self) -> None:
        self.error = 0.0
        self.wrongs: list[str] = []
        self.notes: list[str] = []

    def add(self, what: str, error: float, bound: float = SAME) -> None:
        self.error = max(self.error, error)
        if not error <= bound:
            self.wrongs.append(f"{what}: {error:.2g}")

    def done(self) -> tuple[float, str]:
        if self.wrongs:
            raise Wrong("; ".join(self.wrongs[:3]) + (f"; and {len(self.wrongs) - 3} more" if self.wrongs[3:] else ""))
        return self.error, "; ".join(self.notes)


class Subject:
    """A model under examination.

    Args:
        model: in float32, filled with random numbers.
        tokenizer: of as many tokens.
        vision: whether it is loaded as a model for images and text.
    """

    def __init__(self, model: Any, tokenizer: Any, vision: bool) -> None:
        self.model, self.tokenizer, self.vision = model, tokenizer, vision
        model.requires_grad_(False)
        try:
            self.path = find_blocks(model)
            self.no_chain = ""
        except NoChain as error:
            self.path, self.no_chain = "", str(error)

    @functools.cached_property
    def own(self) -> Own:
        if self.no_chain:
            raise NothingToCheck(f"no chain of blocks: {self.no_chain}")
        return Own(self.model, self.path)

    @functools.cached_property
    def lm(self) -> dct.LanguageModel:
        return dct.LanguageModel(self.model, self.tokenizer, "tiny", self.layers)

    @functools.cached_property
    def layers(self) -> str:
        """What has to be said of the block list: its name, where `dct` asks for it."""
        try:
            dct.LanguageModel(self.model, self.tokenizer, "tiny")
        except dct.DctError as error:
            return self.path if "--layers" in str(error) else ""
        return ""

    def load(self, **options: Any) -> dct.LanguageModel:
        """The model from its folder, as a user loads it."""
        return dct.load(str(self.folder), layers=self.layers, dtype="float32", device="cpu", **options)

    @functools.cached_property
    def depth(self) -> int:
        return len(self.own.blocks)

    @functools.cached_property
    def middle(self) -> tuple[int, int]:
        return 1, self.depth - 1

    @functools.cached_property
    def width(self) -> int:
        return int(self.own.streams(IDS[0])[0].shape[-1])

    @functools.cached_property
    def norm(self) -> float:
        """Size of the stream that enters the middle slice."""
        return float(torch.cat([self.own.streams(ids)[1] for ids in IDS]).norm(dim=1).median())

    def random(self, seed: int, size: float = 1.0) -> Tensor:
        drawn = torch.randn(self.width, generator=torch.Generator().manual_seed(seed))
        return size * normalize(drawn, dim=0)

    @functools.cached_property
    def folder(self) -> Path:
        """The model and its tokenizer on disk; removed by whoever runs the checks."""
        place = Path(tempfile.mkdtemp(prefix="tiny-"))
        self.model.save_pretrained(place)
        self.tokenizer.save_pretrained(place)
        return place

    def reload(self, folder: Path) -> Any:
        """By transformers' own classes."""
        kind = AutoModelForImageTextToText if self.vision else AutoModelForCausalLM
        return kind.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)

    @functools.cached_property
    def unloadable(self) -> str:
        """Why transformers itself does not get the model back from the folder; empty where it does."""
        try:
            again = self.reload(self.folder)
            with torch.no_grad():
                same = all(relative(run(again, ids), run(self.model, ids)) < 1e-6 for ids in IDS)
        except Exception as error:
            return f"transformers does not load what it saves: {line(error)}"
        return "" if same else "transformers' own save and reload does not give the model back"

    def need_folder(self) -> None:
        """Raises:
        NothingToCheck: there is no chain of blocks, or transformers does not load what it saves.
        """
        if self.own and self.unloadable:
            raise NothingToCheck(self.unloadable)

    @functools.cached_property
    def double(self) -> tuple[dct.LanguageModel, Own]:
        """The same model in float64; as it is, where it cannot run in that."""
        own = self.own
        try:
            model = copy.deepcopy(self.model).double()
        except RuntimeError:  # some keep a tensor of their last run
            model = self.reload(self.folder).double()
        if isinstance(getattr(model.config, "_experts_implementation", None), str):
            model.set_experts_implementation("eager")  # the fused products of experts know no float64
        try:
            with torch.no_grad():
                run(model, IDS[0])
        except RuntimeError:
            return self.lm, own
        return dct.LanguageModel(model, self.tokenizer, "tiny", self.layers), Own(model, own.path)

    @functools.cached_property
    def points(self) -> list[Point]:
        """Where its stream can be seen."""
        return points(self.double[1])


def line(error: BaseException) -> str:
    """What an error says, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"
