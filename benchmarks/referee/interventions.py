"""Checks of what changes a model: steering, ablation, and an ablated model that is saved."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

import dct
from referee.own import IDS, Own, find_blocks, run
from referee.subject import SAME, NothingToCheck, Subject, Tally, Wrong, line, relative
from referee.writes import written

LEAK = 1e-5
"""Of what was written along the directions before."""

NEW = 5
"""Tokens of a completion."""


def steering(s: Subject) -> tuple[float, str]:
    """Check 5."""
    lm, own = s.lm, s.own
    configured = s.model.generation_config.eos_token_id
    ends = {e for e in (configured if isinstance(configured, list) else [configured]) if e is not None}
    ends |= {s.tokenizer.eos_token_id}
    try:
        own.generated([IDS[0]], ends, NEW, torch.zeros(1, s.width), 1, "none")
    except Exception as error:
        raise NothingToCheck(f"the model's own generate fails: {line(error)}") from error
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
    """Check 6, in float64 where the model runs in it, so that what is left is not rounding."""
    lm, own = s.double
    bound = LEAK if lm.dtype == torch.float64 else 10 * LEAK
    D = torch.linalg.qr(torch.stack([s.random(41), s.random(42)]).to(lm.dtype).T).Q.T
    before = written(own, D, s.points)
    state = {name: p.clone() for name, p in lm.model.state_dict().items()}
    with torch.no_grad():
        logits = [run(lm.model, ids) for ids in IDS]
    with dct.ablate(lm, D) as done:
        after = written(own, D, s.points)
    tally = Tally()
    whole = max(v for k, v in before.items() if "." not in k)
    inside = max([v for k, v in before.items() if "." in k], default=whole)
    for name, value in after.items():
        size = inside if "." in name else whole
        what = f"block {name}" if "." not in name else f"in block {name}"
        tally.add(f"leak {what}", value / size, bound)
    if any(not torch.equal(p, state[name]) for name, p in lm.model.state_dict().items()):
        tally.add("weights not restored", 1.0, 0.0)
    with torch.no_grad():
        if any(not torch.equal(run(lm.model, ids), own_) for ids, own_ in zip(IDS, logits, strict=True)):
            tally.add("logits not restored", 1.0, 0.0)
    if any(not torch.allclose(p.gain, torch.ones_like(p.gain), rtol=1e-4) for p in s.points):
        tally.notes.append("its blocks scale their stream by a gain")
    between = sum(bool(p.name) for p in s.points)
    tally.notes.append(f"{len(done.edited)} edited, {len(done.projected)} projected, {between} points between")
    return tally.done()


def saved(s: Subject) -> tuple[float, str]:
    """Check 7."""
    s.need_folder()
    lm = s.load()
    own = Own(lm.model, find_blocks(lm.model))
    D = torch.linalg.qr(torch.stack([s.random(41), s.random(42)]).T).Q.T
    before = written(own, D, s.points)
    folder = s.folder / "edited"
    with dct.ablate(lm, D, fold_norms=True) as done, torch.no_grad():
        edited = [run(lm.model, ids) for ids in IDS]
        dct.save(lm, folder, done)
    tally = Tally()
    missing = _tensors(s.folder) ^ _tensors(folder)
    if missing:
        raise Wrong(f"{len(missing)} names of tensors differ from the source's: {min(missing)}")
    with torch.no_grad():
        again = s.reload(folder)
        for ids, wanted in zip(IDS, edited, strict=True):
            tally.add("logits", relative(run(again, ids), wanted), 1e-5)
    after = written(Own(again, s.path), D, s.points)
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
