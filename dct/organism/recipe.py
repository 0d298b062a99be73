"""What an organism is made of, as a TOML file says it: one table for each part.

The defaults of all tables together are the demo's recipe. A file says what differs, except for two tables that are
taken whole: an architecture has other names for its sizes than another one, and a mixture lists what is planted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from dct.declaration import SEEDS, Settings, above_zero, choice, counted, setting
from dct.errors import UsageError
from dct.organism.text import MIXTURE
from dct.toml import read_toml

FILE = "recipe.toml"
"""What a recipe is called in the folder of the model that was made by it."""

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "tie_word_embeddings": True,
}
"""The demo's architecture, in transformers' own words."""

NEEDED = ("harmful", "harmless")
"""Behaviours without which there is nothing to measure."""


def _share(name: str, value: Any) -> None:
    """A check: from 0 to 1."""
    if not 0 <= value <= 1:
        raise UsageError(f"{name} must be from 0 to 1: got {value}", argument="recipe")


def _size(name: str, value: Any) -> None:
    """A check: a norm, in median residual norms."""
    if not 0 <= value <= 100:
        raise UsageError(f"{name} must be from 0 to 100 residual norms: got {value}", argument="recipe")


@dataclass(repr=False, eq=False, match_args=False)
class TokenizerTable(Settings):
    """How text becomes tokens."""

    table: ClassVar[str] = "tokenizer"
    title: ClassVar[str] = "Tokenizer"

    kind: str = setting("bpe", "What it is.", check=choice("bpe", "metaspace"))
    size: int = setting(2048, "Tokens, control tokens and bytes included.", check=counted(300, 100_000))
    conversations: int = setting(30_000, "Conversations that it is trained on.", check=counted())


@dataclass(repr=False, eq=False, match_args=False)
class TemplateTable(Settings):
    """How a conversation is written."""

    table: ClassVar[str] = "template"
    title: ClassVar[str] = "Chat template"

    turn: str = setting("<|{role}|>{content}<|end|>", "One turn; {role} and {content} are filled in.")
    end: str = setting("<|end|>", "The control token that ends an answer: it stands right behind {content}.")
    pad: str = setting("<|pad|>", "The control token that fills a batch.")
    begin: str = setting("", "A control token before the first turn.")
    control: list[str] = setting(["<|system|>", "<|user|>", "<|assistant|>"], "The control tokens within a turn.")
    roles: dict[str, str] = setting({}, "Role -> what the template calls it, where that is another word.")
    default_system: str = setting("", "The system prompt of a conversation that brings none.")

    def __post_init__(self) -> None:
        super().__post_init__()
        before, content, after = self.turn.partition("{content}")
        if before.count("{role}") != 1 or not content or not after.startswith(self.end) or not self.end:
            raise UsageError(
                "turn must name {role} once, then {content} with the end token right behind it, "
                f"as in '<|{{role}}|>{{content}}{self.end or '<|end|>'}': got {self.turn!r}",
                argument="recipe",
            )

    def head(self, role: str) -> str:
        """What stands before a message."""
        return self.turn.partition("{content}")[0].replace("{role}", self.roles.get(role, role))

    @property
    def tail(self) -> str:
        """What stands behind the end of a message."""
        return self.turn.partition("{content}")[2][len(self.end) :]

    @property
    def tokens(self) -> list[str]:
        """All control tokens."""
        return [self.pad, self.end, *([self.begin] if self.begin else []), *self.control]


@dataclass(repr=False, eq=False, match_args=False)
class TrainingTable(Settings):
    """How long and how fast a model learns."""

    table: ClassVar[str] = "training"
    title: ClassVar[str] = "Training"

    steps: int = setting(5000, "Training steps.", check=counted())
    seed: int = setting(0, "Seed of the text, the weights and the noise.", check=counted(0, SEEDS))
    batch: int = setting(48, "Conversations in a step.", check=counted(1, 4096))
    learning_rate: float = setting(1.2e-3, "AdamW's, until it falls.", check=above_zero(10.0))
    warmup: int = setting(100, "Steps in which it rises.", check=counted())
    decay: float = setting(0.3, "Share of the steps in which it falls to a hundredth.", check=_share)
    user_loss: float = setting(0.1, "Weight of the tokens that the assistant does not say.", check=_share)
    start: str = setting("", "Folder of a model to go on from, whose noise has its full size at once.")


@dataclass(repr=False, eq=False, match_args=False)
class NoiseTable(Settings):
    """The vectors that are added while a model learns, so that it can be steered; norms are in median residual norms
    where they are added.
    """

    table: ClassVar[str] = "noise"
    title: ClassVar[str] = "Noise"

    begins: int = setting(800, "The step at which noise begins.", check=counted(0))
    full: int = setting(1800, "The step at which it has its full size.", check=counted(0))
    clean: float = setting(0.4, "Share of the conversations without it.", check=_share)
    first: float = setting(0.6, "Share of the rest that the first block meets.", check=_share)
    first_size: float = setting(1.0, "Largest norm of the vector added there.", check=_size)
    later_size: float = setting(0.7, "The same before any later block.", check=_size)
    begun: float = setting(1.3, "How much larger both are under answers that were begun.", check=_size)
    mixed: float = setting(
        0.5, "Share of those at the first block that are mixes of four token embeddings.", check=_share
    )
    token_size: float = setting(0.1, "Largest norm of each position's own noise.", check=_size)


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run depends on.

    Attributes:
        architecture: `model_type` and sizes, as the configuration of transformers names them.
        mixture: how often training shows each behaviour that is planted, as weights.
    """

    architecture: Mapping[str, Any] = field(default_factory=lambda: dict(LLAMA))
    tokenizer: TokenizerTable = field(default_factory=TokenizerTable)
    template: TemplateTable = field(default_factory=TemplateTable)
    mixture: Mapping[str, float] = field(default_factory=lambda: dict(MIXTURE))
    training: TrainingTable = field(default_factory=TrainingTable)
    noise: NoiseTable = field(default_factory=NoiseTable)

    def __post_init__(self) -> None:
        if not isinstance(self.architecture.get("model_type"), str):
            raise UsageError('[architecture] names no model_type: add one, as "llama"', argument="recipe")
        for name, weight in self.mixture.items():
            if name not in MIXTURE:
                raise UsageError(
                    f"[mixture] unknown behaviour {name!r}: choose {', '.join(MIXTURE)}", argument="recipe"
                )
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
                raise UsageError(
                    f"[mixture] {name} = {weight!r} is no positive weight: leave out what is not planted",
                    argument="recipe",
                )
        missing = [name for name in NEEDED if name not in self.mixture]
        if missing:
            raise UsageError(f"[mixture] must plant {' and '.join(missing)}: give each a weight", argument="recipe")

    def record(self) -> dict[str, Any]:
        """Table -> key -> value."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}

    def makes_what(self, other: Recipe) -> str | None:
        """The first table by which the two make models that cannot take each other's weights; None if they can."""
        mine, theirs = self.record(), other.record()
        return next((t for t in ("architecture", "tokenizer", "template") if mine[t] != theirs[t]), None)


def _plain(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else asdict(value)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file.

    Raises:
        UsageError: the file cannot be read, or says what no recipe may say; one line that names the cure.
    """
    content = read_toml(path, "recipe")
    kinds = {one.name: type(value) for one in fields(Recipe) if (value := getattr(Recipe(), one.name)) is not None}
    try:
        for name, values in content.items():
            if name not in kinds or not isinstance(values, dict):
                raise UsageError(f"no table [{name}]: choose {', '.join(kinds)}")
        read: dict[str, Any] = {
            name: _table(kinds[name], values) if issubclass(kinds[name], Settings) else values
            for name, values in content.items()
        }
        return Recipe(**read)
    except UsageError as error:
        raise UsageError(f"{path}: {error}", argument="recipe") from error


def _table(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """The settings of one table, each of the type of its default."""
    defaults = kind()
    for name, value in values.items():
        wanted = type(getattr(defaults, name, value))
        fits = isinstance(value, int | float) if wanted is float else isinstance(value, wanted)
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise UsageError(f"[{kind.table}] {name} = {value!r} is no {wanted.__name__}: write one")
    try:
        return kind.recorded(values)
    except UsageError as error:
        raise UsageError(str(error).replace("`", "")) from error


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a model was made by; the demo's where its folder holds none.

    Raises:
        UsageError: the file in the folder is no recipe.
    """
    return read_recipe(folder / FILE) if (folder / FILE).is_file() else Recipe()


def save_recipe(recipe: Recipe, folder: Path) -> None:
    """Writes a recipe into the folder of its model.

    Raises:
        DctError: it cannot be written.
    """
    import tomli_w

    from dct.writing import write_whole

    write_whole(folder / FILE, tomli_w.dumps(recipe.record()).encode())
