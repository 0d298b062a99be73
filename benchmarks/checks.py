"""What `dct` says of a model against what the model does by itself: nine checks, each with a verdict.

A check is `ok`; `refused`, with the one line that `dct` gives as its reason; `fails`, by any other exception;
`wrong`, where numbers come out that are not the model's; or `none`, where there is nothing to check.
"""

import copy
import functools
import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import referee
import torch
from referee import IDS, READ, Double, NoChain, Own
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import dct
from dct.blocks import readout
from dct.derivatives import Derivatives

CHECKS = {
    "blocks": "the block list is the model's own chain of blocks",
    "slice": "streams, steered and not, packed and one by one, are those of the model's own forward pass",
    "gradient": "gradients are those of the model's own forward pass, the same bits twice, and on two threads",
    "differences": "gradients, J v and second derivatives are finite differences in float64",
    "fit": "exponential and quadratic fits are finite and the same bits twice",
    "steering": "completions steered at all, prompt and generated tokens are those of the model without a cache",
    "ablation": "nothing along the directions is written, in blocks or between their parts; restored to the bit",
    "saved": "the edited model, saved and loaded by transformers, is the one in memory",
    "parts": "a slice of the model loaded in part is that of the whole",
    "readout": "logits and scores are the model's own",
}

SAME = 1e-4
LEAK = 1e-5
NEW = 5
PROMPTS = ["Tell me how to bake bread", "Write a poem about the sea, please", "How do I pick a lock?"]


class Wrong(Exception):
    """Numbers that are not the model's."""


class NothingToCheck(Exception):
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
            self.path = referee.find_blocks(model)
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
        return dct.LanguageModel(self.model, self.tokenizer, "tiny")

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
                same = all(relative(referee.run(again, ids), referee.run(self.model, ids)) < 1e-6 for ids in IDS)
        except Exception as error:
            return f"transformers does not load what it saves: {_line(error)}"
        return "" if same else "transformers' own save and reload does not give the model back"

    def need_folder(self) -> None:
        """Raises:
        NothingToCheck: there is no chain of blocks, or transformers does not load what it saves.
        """
        if self.own and self.unloadable:
            raise NothingToCheck(self.unloadable)

    @functools.cached_property
    def double(self) -> tuple[dct.LanguageModel, Own]:
        """The same model in float64."""
        own = self.own
        model = copy.deepcopy(self.model).double()
        if isinstance(getattr(model.config, "_experts_implementation", None), str):
            model.set_experts_implementation("eager")  # the fused products of experts know no float64
        return dct.LanguageModel(model, self.tokenizer, "tiny"), Own(model, own.path)


def blocks(s: Subject) -> tuple[float, str]:
    """Check 1."""
    lm = s.lm
    if s.no_chain:
        dct.Slice(lm, IDS, 0, lm.depth)  # to be refused, here at the latest
        raise Wrong(f"accepted {lm.layers_path} ({lm.depth} blocks), but the model runs no such chain: {s.no_chain}")
    if lm.layers_path != s.path:
        raise Wrong(f"found {lm.layers_path}, the model runs {s.path}")
    if lm.width != s.width:
        raise Wrong(f"width {lm.width}, the stream has {s.width}")
    return 0.0, f"{s.path}, {s.depth}"


def slices(s: Subject) -> tuple[float, str]:
    """Check 2."""
    tally = Tally()
    L = s.depth
    spans = dict.fromkeys([(0, L - 1), (1, L), s.middle if L > 4 else (L // 2, L)])
    packed = []
    with torch.no_grad():
        for source, target in spans:
            rest = s.own.read(None, source, target)
            thetas = [s.random(k, s.norm * c) for k, c in ((1, 1.0), (2, 0.3))]
            wanted = [s.own.read(theta, source, target) for theta in thetas]
            for pack in (True, False):
                slice_ = dct.Slice(s.lm, IDS, source, target, positions=READ, pack=pack)
                packed.append(slice_.packed or not pack)
                name = f"{source} to {target}{'' if pack else ', one by one'}"
                tally.add(f"{name}, theta 0", relative(slice_.streams(torch.zeros(1, s.width))[0], rest))
                got = slice_.streams(torch.stack(thetas))
                for k, row in enumerate(got):
                    tally.add(f"{name}, theta {k + 1}", relative(row, wanted[k], wanted[k] - rest))
                delta = slice_(torch.stack(thetas))
                for k, row in enumerate(delta):
                    mean = (wanted[k] - rest).mean(0)
                    tally.add(f"{name}, Delta {k + 1}", relative(row, mean, wanted[k] - rest))
    tally.notes += ["packed" if all(packed) else "not packed"]
    return tally.done()


def gradients(s: Subject) -> tuple[float, str]:
    """Check 3, in float32: against autograd, twice, and on two threads."""
    tally = Tally()
    source, target = s.middle
    slice_ = dct.Slice(s.lm, IDS, source, target, positions=READ)
    rows = torch.stack([torch.zeros(s.width), *(s.random(k, s.norm) for k in range(1, 6))])
    u = torch.stack([s.random(10 + k) for k in range(len(rows))])

    def own(theta: Tensor, u: Tensor) -> Tensor:
        theta = theta.clone().requires_grad_()
        return torch.autograd.grad(s.own.delta(theta, source, target) @ u, theta)[0]

    def by_dct() -> tuple[Tensor, Tensor]:
        return Derivatives(slice_, s.width).value_and_gradient(rows, u)

    once, twice = by_dct(), by_dct()
    for k in range(3):
        tally.add(f"gradient {k}", relative(once[1][k], own(rows[k], u[k])))
    if not all(torch.equal(a, b) for a, b in zip(once, twice, strict=True)):
        tally.add("twice", max(relative(a, b) for a, b in zip(once, twice, strict=True)), 0.0)
    torch.set_num_threads(2)
    try:
        wide = by_dct()
    finally:
        torch.set_num_threads(1)
    tally.add("two threads, values", relative(wide[0], once[0]))
    tally.add("two threads, gradients", relative(wide[1], once[1]))
    return tally.done()


def differences(s: Subject) -> tuple[float, str]:
    """Check 3, in float64: derivatives of every kind against finite differences of the model's own forward pass."""
    tally = Tally()
    source, target = s.middle
    lm, own = s.double
    u, v = s.random(21).double(), s.random(22).double()
    slice_ = dct.Slice(lm, IDS, source, target, positions=READ)
    theta = s.random(23, s.norm).double()

    def closest(make: Any, got: Callable[[Tensor], float]) -> float:
        """Over the steps of the differences, of which none is right for every model, until one is close."""
        best = float("inf")
        for h in (1e-3, 1e-4, 1e-2, 1e-5):
            best = min(best, got(make(h)))
            if best < SAME / 10:
                break
        return best

    def along(at: Tensor, h: float) -> Tensor:
        with torch.no_grad():
            return own.delta(at + h * v, source, target)

    zero = torch.zeros_like(theta)
    derivatives = Derivatives(slice_, s.width, dtype=torch.float64)
    with Double():
        for name, at in (("at 0", zero), ("at theta", theta)):
            place = at[None].clone().requires_grad_()
            [gradient] = torch.autograd.grad(slice_(place), place, u[None])
            slope = functools.partial(referee.slope, functools.partial(along, at))
            size = float(gradient.norm()) / s.width**0.5
            error = closest(slope, lambda w, got=float(gradient[0] @ v), size=size: abs(got - float(u @ w)) / size)
            tally.add(f"gradient {name}", error, 10 * SAME)
        if tally.wrongs:
            tally.done()
        slope = functools.partial(referee.slope, functools.partial(along, zero))
        first = derivatives.jvp(v[None])[0]
        tally.add("J v at 0", closest(slope, lambda w: relative(first, w)))
        slope = functools.partial(referee.slope, functools.partial(along, theta))
        first = torch.func.jvp(slice_, (theta[None],), (v[None],))[1][0]
        tally.add("J v at theta", closest(slope, lambda w: relative(first, w)))
        second = derivatives.second(v[None])[0]
        curvature = functools.partial(referee.curvature, functools.partial(along, zero))
        if float(second.norm()) < 1e-9:
            tally.add("second derivative", closest(curvature, lambda w: float(w.norm())), 1e-3)
            tally.notes.append("no curvature")
        else:
            tally.add("second derivative", closest(curvature, lambda w: relative(second, w)), 1e-2)
    return tally.done()


def fits(s: Subject) -> tuple[float, str]:
    """Check 4."""
    tally = Tally()
    slice_ = dct.Slice(s.lm, IDS[1:], *s.middle, positions=READ)
    for method in ("exponential", "quadratic"):
        scale, factors = (s.norm, 4) if method == "exponential" else (1.0, 2)
        options = {"method": method, "factors": factors, "iterations": 2, "scale": scale, "d_proj": 4, "seed": 0}
        pair = [dct.fit(slice_, slice_.dim, **options) for _ in range(2)]
        for name in ("V", "U", "alpha"):
            a, b = (getattr(found, name) for found in pair)
            if not bool(torch.isfinite(a).all()):
                raise Wrong(f"{method}: {name} is not finite")
            if not torch.equal(a, b):
                tally.add(f"{method}, {name} twice", relative(a, b), 0.0)
    return tally.done()


def steering(s: Subject) -> tuple[float, str]:
    """Check 5."""
    lm, own = s.lm, s.own
    configured = s.model.generation_config.eos_token_id
    ends = {e for e in (configured if isinstance(configured, list) else [configured]) if e is not None}
    ends |= {s.tokenizer.eos_token_id}
    vectors = torch.stack([s.random(31 + k, 1.5 * s.norm) for k in range(len(IDS))])
    wrongs, told, cached, padded = [], set(), False, False
    for tokens in ("none", "all", "prompt", "generated"):
        thetas = vectors if tokens != "none" else torch.zeros_like(vectors)
        grown = [own.greedy(ids, ends, NEW, theta, 1, tokens) for ids, theta in zip(IDS, thetas, strict=True)]
        wanted = [lm.decode(row) for row, _ in grown]
        sure = [margin > 1e-5 for _, margin in grown]
        told.add(tuple(wanted))
        kind = {} if tokens == "none" else {"tokens": tokens}

        def by_dct(rows: list[int], thetas: Tensor = thetas, kind: dict[str, str] = kind) -> list[str]:
            return dct.complete(lm, [IDS[k] for k in rows], thetas[rows], 1, **kind, max_new_tokens=NEW)

        def by_model(rows: list[int], thetas: Tensor = thetas, tokens: str = tokens) -> list[str]:
            ids = [IDS[k] for k in rows]
            return [lm.decode(row) for row in own.generated(ids, ends, NEW, thetas[rows], 1, tokens)]

        alone = [by_dct([k])[0] for k in range(len(IDS))]
        off = [k for k, firm in enumerate(sure) if firm and alone[k] != wanted[k]]
        if off and [alone[k] for k in off] == [by_model([k])[0] for k in off]:
            cached = True
        elif off:
            wrongs.append(f"{tokens}: {len(off)} of {len(IDS)} differ")
        batch = by_dct([0, 1, 2])
        off = [k for k, firm in enumerate(sure) if firm and batch[k] != alone[k]]
        if off:
            padded = padded or batch == by_model([0, 1, 2])
            wrongs.append(f"{tokens}: {len(off)} of {len(IDS)} are not the same alone and in a batch")
    if wrongs:
        raise Wrong("; ".join(wrongs) + ("; the model itself does not ignore padding" if padded else ""))
    notes = [f"{len(told)} of 4 ways differ", "the model's own cache changes what it says" if cached else ""]
    return 0.0, "; ".join(note for note in notes if note)


def ablation(s: Subject) -> tuple[float, str]:
    """Check 6, in float64, so that what is left is not rounding."""
    lm, own = s.double
    D = torch.linalg.qr(torch.stack([s.random(41), s.random(42)]).double().T).Q.T
    points = own.points()
    before = own.written(D, points)
    state = {name: p.clone() for name, p in lm.model.state_dict().items()}
    with torch.no_grad():
        logits = [referee.run(lm.model, ids) for ids in IDS]
    with dct.ablate(lm, D) as done:
        after = own.written(D, points)
    tally = Tally()
    whole = max(v for k, v in before.items() if "." not in k)
    inside = max([v for k, v in before.items() if "." in k], default=whole)
    for name, value in after.items():
        size = inside if "." in name else whole
        what = f"block {name}" if "." not in name else f"in block {name}"
        tally.add(f"leak {what}", value / size, LEAK)
    if any(not torch.equal(p, state[name]) for name, p in lm.model.state_dict().items()):
        tally.add("weights not restored", 1.0, 0.0)
    with torch.no_grad():
        if any(not torch.equal(referee.run(lm.model, ids), own_) for ids, own_ in zip(IDS, logits, strict=True)):
            tally.add("logits not restored", 1.0, 0.0)
    if any(not torch.allclose(p.gain, torch.ones_like(p.gain), rtol=1e-4) for p in points):
        tally.notes.append("its blocks scale their stream by a gain")
    points = [p for p in points if p.name]
    tally.notes.append(f"{len(done.edited)} edited, {len(done.projected)} projected, {len(points)} points between")
    return tally.done()


def saved(s: Subject) -> tuple[float, str]:
    """Check 7."""
    s.need_folder()
    lm = dct.load(str(s.folder), dtype="float32", device="cpu")
    own = Own(lm.model, referee.find_blocks(lm.model))
    D = torch.linalg.qr(torch.stack([s.random(41), s.random(42)]).T).Q.T
    before = own.written(D, own.points())
    folder = s.folder / "edited"
    with dct.ablate(lm, D, fold_norms=True) as done, torch.no_grad():
        edited = [referee.run(lm.model, ids) for ids in IDS]
        dct.save(lm, folder, done)
    tally = Tally()
    missing = _tensors(s.folder) ^ _tensors(folder)
    if missing:
        raise Wrong(f"{len(missing)} names of tensors differ from the source's: {min(missing)}")
    with torch.no_grad():
        again = s.reload(folder)
        for ids, wanted in zip(IDS, edited, strict=True):
            tally.add("logits", relative(referee.run(again, ids), wanted), 1e-5)
    reloaded = Own(again, s.path)
    after = reloaded.written(D, s.own.points())
    most = max(before.values())
    for name, value in after.items():
        tally.add(f"leak of the saved model, block {name}", value / most, SAME)
    return tally.done()


def _tensors(folder: Path) -> set[str]:
    """Names of the tensors in a folder's files."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def parts(s: Subject) -> tuple[float, str]:
    """Check 8."""
    s.need_folder()
    tally = Tally()
    source, target = 1, max(2, s.depth - 2)
    theta = s.random(51, s.norm)
    with torch.no_grad():
        rest = s.own.read(None, source, target)
        wanted = s.own.read(theta, source, target)
        for name, between in (("whole", None), ("in part", (source, target))):
            lm = dct.load(str(s.folder), between=between, dtype="float32", device="cpu")
            slice_ = dct.Slice(lm, IDS, source, target, positions=READ)
            tally.add(f"loaded {name}, theta 0", relative(slice_.streams(torch.zeros(1, s.width))[0], rest))
            tally.add(f"loaded {name}", relative(slice_.streams(theta[None])[0], wanted, wanted - rest))
    return tally.done()


def readouts(s: Subject) -> tuple[float, str]:
    """Check 9."""
    tally = Tally()
    with torch.no_grad():
        for ids in IDS:
            logits = referee.run(s.model, ids)
            leaving = s.own.streams(ids)[-1]
            tally.add("readout", relative(readout(s.lm, leaving), logits))
    slice_ = dct.Slice(s.lm, s.lm.encode(PROMPTS), *s.middle, positions=READ)
    factors = dct.fit(slice_, slice_.dim, method="exponential", factors=2, iterations=1, scale=s.norm, d_proj=4, seed=0)
    factors.info.update(slice_.info)
    ranking = dct.rank(s.lm, factors, PROMPTS, source=1, scale=s.norm)
    words = ranking.words
    rows = [[*s.lm.tokens(text), *words.after] for text in PROMPTS]

    def score(theta: Tensor | None) -> float:
        with torch.no_grad(), s.own.adding(theta, 1):
            last = torch.stack([referee.run(s.model, ids)[-1] for ids in rows])
        return float((last[:, words.positive] - last[:, words.negative]).mean())

    size = max(1.0, *(abs(r.effect.score) for r in ranking.vectors))
    tally.add("unsteered score", abs(ranking.unsteered.score - score(None)) / size)
    for found in ranking.vectors:
        v = factors.V[int(found.vector.removeprefix("-"))] * (-1 if found.vector.startswith("-") else 1)
        tally.add(f"score of {found.vector}", abs(found.effect.score - score(s.norm * v)) / size)
    return tally.done()


STEPS: dict[str, Callable[[Subject], tuple[float, str]]] = {
    "blocks": blocks,
    "slice": slices,
    "gradient": gradients,
    "differences": differences,
    "fit": fits,
    "steering": steering,
    "ablation": ablation,
    "saved": saved,
    "parts": parts,
    "readout": readouts,
}


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def verdict(step: Callable[[Subject], tuple[float, str]], s: Subject) -> dict[str, Any]:
    """What a check comes to: its verdict, the largest error, and a word about it."""
    try:
        error, note = step(s)
        return {"verdict": "ok", "error": error, "note": note}
    except NothingToCheck as error:
        return {"verdict": "none", "note": str(error)}
    except Wrong as error:
        return {"verdict": "wrong", "note": str(error)}
    except dct.DctError as error:
        one = "\n" not in str(error)
        return {"verdict": "refused" if one else "fails", "note": str(error)}
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = "/".join(Path(frame.filename).parts[-2:])
        return {"verdict": "fails", "note": f"{_line(error)} ({place}:{frame.lineno})"}


def examine(s: Subject, tell: Callable[[str, dict[str, Any]], None]) -> None:
    """Every check; `tell` hears of each as it is done."""
    try:
        for name, step in STEPS.items():
            found = verdict(step, s)
            tell(name, found)
    finally:
        if "folder" in vars(s):
            shutil.rmtree(s.folder, ignore_errors=True)
