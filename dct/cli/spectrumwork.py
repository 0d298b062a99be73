"""What `dct spectrum` measures: the slice of a run, its second derivatives, and names for both of their ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dct.cli.terminal import Terminal
from dct.errors import DctError
from dct.settings import SpectrumSettings

if TYPE_CHECKING:
    from torch import Tensor

    from dct.derivatives import Derivatives
    from dct.factors import Factors
    from dct.hosvd import Hosvd
    from dct.model import LanguageModel
    from dct.spectra import Spectrum

EIGENVECTORS, TERMS = 16, 8

NAMED = 2
"""Eigenvectors of each term that get names."""


class Work:
    """The slice of a run, and what is made of its second derivatives.

    Args:
        terminal: told what happens.
        lm: the run's model.
        factors: the run's.
        options: what was asked for.

    Raises:
        DctError: the run does not say between which layers and on which prompts it was fitted.
    """

    def __init__(self, terminal: Terminal, lm: "LanguageModel", factors: "Factors", options: SpectrumSettings) -> None:
        from dct.slice import Slice

        info = factors.info
        missing = [key for key in ("source", "target", "prompts") if info.get(key) is None]
        if missing:
            raise DctError(f"these factors do not say their {', '.join(missing)}: fit again with `dct fit`")
        self.terminal, self.lm, self.factors, self.options = terminal, lm, factors, options
        ids = info.get("ids") or lm.encode(info["prompts"], info.get("system"))
        with terminal.busy("running the prompts"):
            self.slice: Slice = Slice(lm, ids, info["source"], info["target"], info.get("positions"))

    # --- one output ---

    def one(self) -> tuple[dict[str, Any], "Spectrum"]:
        """The spectrum of the output that was asked for, with what it is to be held against."""
        from dct.calibration import random_directions
        from dct.spectra import CORRELATION, EXACT, PROBES, chance_edge, chance_rank
        from dct.spectra import spectrum as taken_apart

        options, count = self.options, self.options.count or EIGENVECTORS
        end, u = self._output()
        exact = options.exact if options.exact is not None else self.lm.width <= EXACT
        each = self.lm.width if exact else 6 * count + PROBES
        with self._taking(2 * each + 4 * options.directions) as d:
            found = taken_apart(d, u, count, exact=options.exact, seed=options.seed)
            stranger = random_directions(1, self.lm.width, options.seed + 4)[0]
            other = taken_apart(d, stranger, count, exact=options.exact, seed=options.seed)
            agreements = self._agreements(d, u, found)
            vectors = self._eigenvectors(d, u, found)
        content = {
            "output": end,
            **self._about(),
            "exact": found.exact,
            "products": found.products,
            "norm": found.total,
            "norm_error": found.error,
            "slope": found.slope,
            "values": found.values.tolist(),
            "captured": found.captured.tolist(),
            "correlation": CORRELATION,
            "rank": found.rank(),
            "chance": {"edge": chance_edge(found.total, found.dim), "rank": chance_rank(found.dim)},
            "random_output": {"values": other.values.tolist(), "norm": other.total, "rank": other.rank()},
            "causes": self._names_of_outputs(u[None])[0],
            "agreement": agreements,
            "eigenvectors": vectors,
        }
        return content, found

    def _output(self) -> tuple[str, "Tensor"]:
        """Its name and its direction at the target layer."""
        from dct.candidates import chosen

        info, token = self.factors.info, self.options.token
        if token is None:
            name = str(self.options.vector)
            return f"vector {name}", chosen(self.factors, name, "target").to(self.lm.device)
        from dct.naming import token_direction

        ids = self.lm.continuation(token, info.get("system"))
        if not ids:
            raise DctError(f"{token!r} has no tokens: choose another word")
        if len(ids) > 1:
            self.terminal.note(f"{token!r} has {len(ids)} tokens: its first, {self.lm.decode(ids[:1])!r}, is taken")
        with self.terminal.busy("pulling the token back"):
            return f"token {token}", token_direction(self.lm, ids[0], info["target"], self.slice.ids)

    def _agreements(self, d: "Derivatives", u: "Tensor", found: "Spectrum") -> dict[str, Any]:
        """Truncated forms beside the whole one and the true response, over random inputs and over the run's vectors."""
        import torch

        from dct.spectra import CORRELATION, agreement, first_above, normal_inputs

        R = self.factors.scale
        own = R * self.factors.V
        inputs = {
            "random": normal_inputs(self.options.directions, self.lm.width, R, self.options.seed + 5),
            "vectors": torch.cat([own, -own]),
        }
        made = {name: agreement(d, u, found, theta) for name, theta in inputs.items()}
        return {
            name: {
                **asdict(one),
                "form_rank": first_above(one.form, CORRELATION),
                "even_rank": first_above(one.even, CORRELATION),
            }
            for name, one in made.items()
        }

    def _eigenvectors(self, d: "Derivatives", u: "Tensor", found: "Spectrum") -> list[dict[str, Any]]:
        """What is known of each: what it adds to the output at R, by the form and by the model, and its names."""
        import torch

        R = self.factors.scale
        added = R * found.vectors
        out = torch.nn.functional.normalize(u, dim=0).to(d.device, d.dtype)
        there, back = (d.value(sense * added) @ out for sense in (1, -1))
        cosines = found.vectors.cpu().float() @ self.factors.V.T
        nearest = cosines.abs().argmax(1)
        names = self._names_of_inputs(found.vectors)
        own = None if self.options.vector is None else int(self.options.vector.removeprefix("-"))
        return [
            {
                "value": float(found.values[k]),
                "at_R": 0.5 * R * R * float(found.values[k]),
                "residual": float(found.residuals[k]),
                "linear": R * float(found.linear[k]),
                "plus": float(there[k]),
                "minus": float(back[k]),
                "even": float(there[k] + back[k]) / 2,
                "nearest": {"vector": str(int(nearest[k])), "cosine": float(cosines[k, nearest[k]])},
                "own": None if own is None else float(cosines[k, own]),
                "names": names[k],
            }
            for k in range(len(found.vectors))
        ]

    def saved(self, found: "Spectrum", out: Path) -> Path:
        """The eigenvectors as a run of their own."""
        from dct.eigenrun import save_eigenvectors

        end = self.options.vector if self.options.vector is not None else self.options.token
        return save_eigenvectors(self.slice, self.factors, found, out, str(end), self.options.batch)

    # --- all outputs ---

    def terms(self) -> dict[str, Any]:
        """The leading terms of all second derivatives."""
        from dct.hosvd import hosvd, usual_products
        from dct.spectra import CORRELATION

        options, count = self.options, self.options.count or TERMS
        with self._taking(usual_products(self.lm.width, self.lm.width, count, options.inputs, 2)) as d:
            found = hosvd(d, count, inputs=options.inputs, seed=options.seed)
        return {
            "output": None,
            **self._about(),
            "inputs": min(options.inputs, self.lm.width),
            "products": found.products,
            "norm": found.total,
            "norm_error": found.error,
            "correlation": CORRELATION,
            "terms": self._terms(found),
        }

    def _terms(self, found: "Hosvd") -> list[dict[str, Any]]:
        import torch

        causes = self._names_of_outputs(torch.stack([one.u.float() for one in found.components]))
        first = torch.cat([one.vectors[:NAMED] for one in found.components])
        names = iter(self._names_of_inputs(first))
        return [
            {
                "sigma": one.sigma,
                "left": left,
                "rank": one.rank(),
                "values": one.values.tolist(),
                "causes": causes[k],
                "inputs": [next(names) for _ in one.vectors[:NAMED]],
            }
            for k, (one, left) in enumerate(zip(found.components, found.left, strict=True))
        ]

    # --- for both ---

    def _about(self) -> dict[str, Any]:
        """Of what the second derivatives are."""
        return {
            "source": self.slice.source,
            "target": self.slice.target,
            "scale": self.factors.scale,
            "prompts": len(self.slice.ids),
        }

    @contextmanager
    def _taking(self, expected: int) -> "Iterator[Derivatives]":
        """Derivatives of the slice, with a bar of those that are taken."""
        from dct.derivatives import Derivatives

        blocks, tokens = self.slice.target - self.slice.source, self.slice.tokens
        self.terminal.note(f"about {expected:,} derivatives of {blocks} blocks on {tokens} tokens")
        done = 0
        with self.terminal.progress("taking derivatives", "derivatives") as advance:

            def on_rows(rows: int) -> None:
                nonlocal done
                done += rows
                advance("", done, max(done, expected))

            dtype = self.slice.dtype
            yield Derivatives(self.slice, self.lm.width, batch=self.options.batch, dtype=dtype, on_rows=on_rows)

    def _names_of_outputs(self, U: "Tensor") -> list[dict[str, Any]]:
        """The tokens that output directions point to, and those that they point away from."""
        from dct.naming import target_names

        with self.terminal.busy("naming outputs"):
            named = target_names(self.lm, U.float(), self.slice.target, self.slice.ids, seed=self.options.seed)
        return [asdict(name) for name in named]

    def _names_of_inputs(self, directions: "Tensor") -> list[dict[str, Any]]:
        """The tokens that input directions make likelier, in both of their senses."""
        import torch

        from dct.calibration import random_directions
        from dct.naming import NULL, vector_names
        from dct.nexttoken import NextTokens

        R, n = self.factors.scale, len(directions)
        added = R * directions.cpu().float()
        null = R * random_directions(NULL, self.lm.width, self.options.seed + 2)
        with self.terminal.busy("naming inputs"):
            near = NextTokens(self.lm, self.slice.source, self.slice.ids)
            named = vector_names(near, torch.cat([added, -added]), null)
        return [{"plus": asdict(named[k]), "minus": asdict(named[n + k])} for k in range(n)]
