"""What the files of a run hold beside tensors: one declaration each for factors, states and rankings.

A file is checked against it when it is opened, and before it is written: no later line has to doubt a key or a type.
Keys that are not named here are allowed; those that are named and that commands read are of the type that they expect.
"""

from dct.schema import Is, Listing, OrNull, Record, anything, flag, matching, number, one_of, text, whole

SCALES = (1e-18, 1e18)
"""R, at the utmost: its square must be a number in float32 too."""

scale = number(*SCALES)
seed = whole(-(2**63), 2**64 - 2**32)
"""What torch's generators take, with room for the seeds that are counted up from it."""

layer = whole(0, 10**6)
positions = Is("`all` or a whole number from 1 on", lambda p: p == "all" or whole(1).test(p))
numbers = Listing(OrNull(number()))

LOADING = Record(
    optional={
        "dtype": text(1),
        "device": text(1),
        "layers": text(),
        "revision": OrNull(text()),
        "trust_remote_code": flag,
        "memory": OrNull(text()),
        "adapter": OrNull(text()),
    }
)
"""How a model was loaded: keyword arguments."""

OPTIONS = Record(
    needed={"method": text(1), "factors": whole(1), "iterations": whole(1), "seed": seed},
    optional={
        "orthogonalize": OrNull(one_of("qr", "soft", "none")),
        "start": one_of("projected", "random"),
        "d_proj": whole(1),
        "beta": OrNull(number(0, 1, above=True)),
        "tolerance": number(),
        "method_options": OrNull(Record()),
    },
)
"""Keyword arguments of `dct.fit`."""

CALIBRATION = Record(needed={"ratio": OrNull(number()), "limited": flag, "curve": Listing(numbers)})

MINUS = Record(
    needed={"model": text(1), "fingerprint": text()},
    optional={"apart": numbers, "gap": number(0), "rounding": number(0)},
)
"""The model whose response was subtracted."""

PERTURBATION = Record(
    needed={
        "kind": one_of("rank-1"),
        "first": layer,
        "inputs": Listing(whole(1), least=1),
        "width": whole(1),
        "modules": Listing(text(1), least=1),
    }
)
"""What the rows of V are, where they are no vectors: rank-1 changes of a band of blocks."""

KNOWN = {
    "model": text(1),
    "fingerprint": text(),
    "layers": OrNull(text()),
    "blocks": whole(1),
    "width": whole(1),
    "source": layer,
    "target": layer,
    "positions": positions,
    "system": OrNull(text()),
    "prompts": Listing(text()),
    "prompts_hash": text(),
    "prompts_origin": OrNull(text()),
    "column": OrNull(text()),
    "tokens": whole(0),
    "residual_norm": OrNull(number(0)),
    "target_norm": OrNull(number(0)),
    "dtype": text(),
    "device": text(),
    "versions": Record(),
    "loading": LOADING,
    "lambda": OrNull(number(0, above=True)),
    "calibration": OrNull(CALIBRATION),
    "estimate": OrNull(Record()),
    "compile": one_of("on", "off", "auto"),
    "minus": OrNull(MINUS),
    "perturbation": OrNull(PERTURBATION),
    "batch": OrNull(whole(1)),
    "seed": seed,
}
"""What factors and states have in common: where they come from."""

FACTORS = Record(
    needed={"scale": scale},
    optional={
        **KNOWN,
        "method": OrNull(text()),
        "signed": flag,
        "factors": whole(1),
        "iterations": whole(1),
        "orthogonalize": OrNull(text()),
        "start": text(),
        "beta": OrNull(number()),
        "eta": number(),
        "d_proj": whole(1),
        "random_start": whole(0),
        "informative": whole(0),
        "response": numbers,
        "random_response": numbers,
        "above_random": whole(0),
        "of_target": numbers,
        "exploded": whole(0),
        "settled": flag,
        "fit_seconds": OrNull(number(0)),
        "seconds": OrNull(number(0)),
        "peak_memory": whole(0),
    },
)
"""`config` of a factors file: the scale; all else may be missing, as from a Python user, but is not of another type."""

NEEDED_TO_RESUME = (
    *("model", "fingerprint", "loading", "source", "target", "prompts", "prompts_origin", "column"),
    *("system", "positions", "lambda", "calibration", "batch"),
)

STATE = Record(
    needed={
        **{key: KNOWN[key] for key in NEEDED_TO_RESUME},
        "prompts": Listing(text(1), least=1),
        "scale": scale,
        "options": OPTIONS,
        "objective": Listing(
            Is(
                "a list of three numbers",
                lambda row: isinstance(row, list) and len(row) == 3 and all(number().test(x) for x in row),
            )
        ),
    },
    optional={**{key: rule for key, rule in KNOWN.items() if key not in NEEDED_TO_RESUME}, "beside": OrNull(text())},
)
"""`config` of a state: everything that decides a fit, and how far it is."""

MARK = Record(needed={"right": whole(0), "asked": whole(1)})
EFFECT = Record(needed={"score": OrNull(number()), "flipped": OrNull(number()), "kl": OrNull(number())})

VECTOR = Record(
    needed={"vector": matching("a number such as 17, or -17 for its opposite", "-?(0|[1-9][0-9]{0,8})")},
    optional={
        "scale": scale,
        "alpha": OrNull(number(0)),
        "effect": OrNull(EFFECT),
        "validation": OrNull(MARK),
        "test": OrNull(MARK),
    },
)

ARM = Record(
    needed={"arm": text(1), "vector": text(1), "layer": layer, "scale": scale, "validation": MARK, "test": MARK},
    optional={
        "interval": Listing(number(0, 1), least=2),
        "chance": OrNull(number(0, 1)),
        "damage": OrNull(Record(needed={"kl": OrNull(number()), "spoiled": whole(0), "of": whole(0)})),
    },
)
"""The chosen one of the vectors that were found, or of a baseline."""

SAMPLE = Record(
    needed={
        "vector": text(1),
        "completions": Listing(text(), least=1),
        "verdicts": Listing(Record(needed={"label": text(1), "coherent": flag}), least=1),
        "damage": OrNull(number()),
    },
    optional={
        "name": OrNull(Record(needed={"more": Listing(text()), "less": Listing(text())})),
        "says": Listing(text(1)),
    },
)
KINDS = Record(
    needed={
        "kinds": Listing(Record(needed={"vectors": Listing(text(1), least=1), "unchanged": flag})),
        "vectors": whole(0),
        "random_kinds": whole(0),
        "prompts": Listing(text(), least=1),
        "samples": Listing(SAMPLE),
        "names": Record(),
    }
)
"""Kinds of behaviour, and what one vector of each says."""

STABILITY = Record(needed={"values": Listing(number(0, 1), least=1), "chance": number(0, 1), "runs": whole(1)})
"""How far fits that differ in the seed or the prompts found each factor again."""
COSINES = Listing(number(-1.001, 1.001), least=1)
RESEMBLANCE = Record(
    needed={
        "layers": Listing(layer, least=1),
        "stream": Record(),
        "difference": OrNull(Record()),
        "chance_stream": COSINES,
        "chance_difference": OrNull(COSINES),
    }
)
"""Cosines of each vector with what enters each layer, and what chance makes of them."""

RANKING = Record(
    needed={"vectors": Listing(VECTOR, least=1)},
    optional={
        "factors": matching("a digest", "[0-9a-f]{64}"),
        "scale": scale,
        "scales": Listing(number(0, above=True), least=1),
        "by": text(1),
        "unsteered": Record(),
        "random_best": Record(),
        "random_mean": Record(),
        "supervised": OrNull(EFFECT),
        "unlocked": OrNull(MARK),
        "recovered": OrNull(number()),
        "words": Record(optional={"shown_positive": text(), "shown_negative": text(), "notes": Listing(text())}),
        "prompts": whole(0),
        "harmless": whole(0),
        "validation": whole(0),
        "test": whole(0),
        "task": text(),
        "arms": Listing(ARM, least=1),
        "random": Listing(EFFECT),
        "kinds": OrNull(KINDS),
        "stability": OrNull(STABILITY),
        "resembles": OrNull(RESEMBLANCE),
        "tries": whole(1),
        "labels": Record(),
        "judge": text(1),
        "wanted": text(1),
        "max_new_tokens": whole(1),
        "prompts_origin": OrNull(anything),
    },
)
"""`rank.json`."""
