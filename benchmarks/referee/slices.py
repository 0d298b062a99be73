"""Checks of slices: blocks, streams, derivatives, fits, parts, and what is read out of them."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dct
from dct.blocks import readout
from dct.derivatives import Derivatives
from referee.own import IDS, READ, Double, curvature, run, slope
from referee.subject import SAME, NothingToCheck, Subject, Tally, Wrong, relative

PROMPTS = ["Tell me how to bake bread", "Write a poem about the sea, please", "How do I pick a lock?"]


def blocks(s: Subject) -> tuple[float, str]:
    """Check 1."""
    lm = dct.LanguageModel(s.model, s.tokenizer, "tiny")
    dct.Slice(lm, IDS, 0, lm.depth)  # what is no chain of blocks has to be refused, here at the latest
    if s.no_chain:
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
    if lm.dtype != torch.float64:
        raise NothingToCheck("the model does not run in float64")
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
            slopes = functools.partial(slope, functools.partial(along, at))
            size = float(gradient.norm()) / s.width**0.5
            error = closest(slopes, lambda w, got=float(gradient[0] @ v), size=size: abs(got - float(u @ w)) / size)
            tally.add(f"gradient {name}", error, 10 * SAME)
        if tally.wrongs:
            tally.done()
        slopes = functools.partial(slope, functools.partial(along, zero))
        first = derivatives.jvp(v[None])[0]
        tally.add("J v at 0", closest(slopes, lambda w: relative(first, w)))
        slopes = functools.partial(slope, functools.partial(along, theta))
        first = torch.func.jvp(slice_, (theta[None],), (v[None],))[1][0]
        tally.add("J v at theta", closest(slopes, lambda w: relative(first, w)))
        second = derivatives.second(v[None])[0]
        curvatures = functools.partial(curvature, functools.partial(along, zero))
        if float(second.norm()) < 1e-9:
            tally.add("second derivative", closest(curvatures, lambda w: float(w.norm())), 1e-3)
            tally.notes.append("no curvature")
        else:
            tally.add("second derivative", closest(curvatures, lambda w: relative(second, w)), 1e-2)
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
            lm = s.load(between=between)
            slice_ = dct.Slice(lm, IDS, source, target, positions=READ)
            tally.add(f"loaded {name}, theta 0", relative(slice_.streams(torch.zeros(1, s.width))[0], rest))
            tally.add(f"loaded {name}", relative(slice_.streams(theta[None])[0], wanted, wanted - rest))
    return tally.done()


def readouts(s: Subject) -> tuple[float, str]:
    """Check 9."""
    tally = Tally()
    with torch.no_grad():
        for ids in IDS:
            logits = run(s.model, ids)
            leaving = s.own.streams(ids)[-1]
            tally.add("readout", relative(readout(s.lm, leaving), logits))
    slice_ = dct.Slice(s.lm, s.lm.encode(PROMPTS), *s.middle, positions=READ)
    factors = dct.fit(slice_, slice_.dim, method="exponential", factors=2, iterations=1, scale=s.norm, d_proj=4, seed=0)
    factors.info.update(slice_.info)
    ranking = dct.rank(s.lm, factors, PROMPTS, source=1, scale=s.norm)
    words = ranking.words
    rows = [[*s.lm.tokens(text), *words.after] for text in PROMPTS]

    def score(theta: Tensor | None) -> float:
        sides = []
        for said in (words.positive, words.negative):
            with torch.no_grad(), s.own.adding(theta, 1):
                logs = [run(s.model, [*ids, *said[:-1]])[-len(said) :].log_softmax(-1) for ids in rows]
            sides.append(sum(float(row[k, token]) for row in logs for k, token in enumerate(said)) / len(rows))
        return sides[0] - sides[1]

    size = max(1.0, *(abs(r.effect.score) for r in ranking.vectors))
    tally.add("unsteered score", abs(ranking.unsteered.score - score(None)) / size)
    for found in ranking.vectors:
        v = factors.V[int(found.vector.removeprefix("-"))] * (-1 if found.vector.startswith("-") else 1)
        tally.add(f"score of {found.vector}", abs(found.effect.score - score(s.norm * v)) / size)
    return tally.done()
