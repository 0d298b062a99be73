"""Rank-1 changes of attention outputs: the map, the fit and what becomes of it, against copies with edited weights."""

import copy
from contextlib import suppress

import pytest
import torch
import transformers
from conftest import WIDTH
from torch import Tensor
from torch.nn.functional import normalize
from transformers.pytorch_utils import Conv1D

import dct
from dct.bandslice import BandSlice
from dct.errors import DctError, UsageError
from dct.perturbation import Perturbation, RankOne, choose_band, default_band, recorded
from dct.projections import changed, rank_one

# Different lengths, a common beginning, and all of them longer than the sliding window of 6.
IDS = [
    [1, 5, 9, 20, 31, 7, 8, 9, 44, 45, 46, 47],
    [1, 5, 9, 33, 3, 61, 70],
    [1, 5, 9, 20, 31, 77, 78, 79, 80, 81],
]
FIRST, LAST, TARGET = 1, 2, 4
BAND = (FIRST, LAST)

PROJECTION = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense", "qwen3_next": "linear_attn.out_proj"}
NORM = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
F64 = torch.float64


def double(make_lm, architecture: str) -> dct.LanguageModel:
    return make_lm(architecture, dtype=F64)


def edited(lm: dct.LanguageModel, theta: Tensor) -> torch.nn.Module:
    """A copy of the model with R b_l a_l' added to its weights, written out from the definition.

    theta = R phi, phi = (a_1, b_1, a_2, b_2 ...) / sqrt(2L), every a and b of length 1.
    """
    model = copy.deepcopy(lm.model)
    scale, at = float(theta.norm()), 0
    for block in range(FIRST, LAST + 1):
        path = f"{lm.layers_path}.{block}.{PROJECTION.get(lm.name, 'self_attn.o_proj')}"
        module = model.get_submodule(path)
        turned = isinstance(module, Conv1D)  # (in, out)
        inputs = module.weight.shape[0 if turned else 1]
        a, b = theta[at : at + inputs], theta[at + inputs : at + inputs + WIDTH]
        at += inputs + WIDTH
        edit = scale * torch.outer(b / b.norm(), a / a.norm())
        with torch.no_grad():
            module.weight += (edit.T if turned else edit).to(module.weight.dtype)
    assert at == len(theta)
    return model


def stream(lm: dct.LanguageModel, model: torch.nn.Module, ids: list[int], layer: int) -> Tensor:
    """hidden_states[layer] by the model's own account."""
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states[layer][0]


def by_hand(lm: dct.LanguageModel, theta: Tensor, read: int = 3) -> Tensor:
    """Delta of one row: whole models, one prompt at a time."""
    model = edited(lm, theta)
    moved = [(stream(lm, model, ids, TARGET) - stream(lm, lm.model, ids, TARGET))[-read:].mean(0) for ids in IDS]
    return torch.stack(moved).mean(0)


def rows(slice_: BandSlice, count: int, seed: int = 0, scale: float = 0.7) -> Tensor:
    return scale * slice_.perturbation.random(count, seed).double()


ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "gemma2"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pack", [True, False])
def test_the_map_is_the_model_with_edited_weights(make_lm, architecture, pack):
    lm = double(make_lm, architecture)
    slice_ = BandSlice(lm, IDS, BAND, TARGET, positions=3, pack=pack)
    assert slice_.packed == pack
    theta = rows(slice_, 3)
    with torch.no_grad():
        got = slice_(theta)
    wanted = torch.stack([by_hand(lm, row) for row in theta])
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6  # norms of some are taken in float32
    assert float(slice_(torch.zeros(2, slice_.dim, dtype=F64)).abs().max()) < 1e-14


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_its_gradient_is_that_of_finite_differences_on_edited_copies(make_lm, architecture):
    lm = double(make_lm, architecture)
    slice_ = BandSlice(lm, IDS, BAND, TARGET, positions=3)
    theta, u = rows(slice_, 1), normalize(torch.randn(WIDTH, dtype=F64), dim=0)
    at = theta.clone().requires_grad_()
    [gradient] = torch.autograd.grad(slice_(at) @ u, at, torch.ones(1, dtype=F64))
    # Along directions in which every a and b keeps its length, R is |theta|.
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        way, pieces = torch.randn(1, slice_.dim, generator=generator, dtype=F64), []
        for pair, parts in zip(slice_.perturbation.parts(way), slice_.perturbation.parts(theta), strict=True):
            pieces += [w - (w * p).sum() / (p * p).sum() * p for w, p in zip(pair, parts, strict=True)]
        tangent, h = torch.cat(pieces, 1), 1e-3
        there, back = (by_hand(lm, (theta + sign * h * tangent)[0]) @ u for sign in (1, -1))
        assert float((gradient * tangent).sum()) == pytest.approx(float((there - back) / (2 * h)), rel=1e-3)
    along = theta / theta.norm()
    there, back = (by_hand(lm, (theta + sign * 1e-3 * along)[0]) @ u for sign in (1, -1))
    assert float((gradient * along).sum()) == pytest.approx(float((there - back) / 2e-3), rel=1e-3)


def test_a_linear_attention_is_changed_at_its_own_projection():
    """A hybrid model: block 1 has linear attention, block 3 softmax attention; whole models with edited weights."""
    if not hasattr(transformers, "Qwen3NextForCausalLM"):
        pytest.skip("this transformers has no Qwen3-Next")
    from referee.configs import tiny_model, tiny_tokenizer

    lm = dct.LanguageModel(tiny_model("qwen3_next", "Qwen3NextForCausalLM"), tiny_tokenizer(), "hybrid")
    kinds = lm.model.config.layer_types
    first = next(k for k in range(lm.depth - 2) if kinds[k] != kinds[k + 1])
    kind = rank_one(lm, first, first + 1)
    names = {"linear_attention": "linear_attn.out_proj", "full_attention": "self_attn.o_proj"}
    assert [name.partition(f"{lm.layers_path}.")[2][2:] for name in kind.modules] == [
        names[kinds[block]] for block in kind.blocks
    ]
    ids = [[1, 5, 9, 20, 31, 7, 8], [3, 6, 9, 12, 15]]
    slice_ = BandSlice(lm, ids, kind, first + 2, positions=2)
    theta = 0.8 * kind.random(2, 1)
    model = copy.deepcopy(lm.model)
    moved = []
    for row in theta:
        edits = [
            (name, b[0, :, None] * a[0]) for name, (a, b) in zip(kind.modules, kind.changes(row[None]), strict=True)
        ]
        with torch.no_grad():
            for sign in (1, 0):
                for name, edit in edits:
                    module, own = model.get_submodule(name), lm.model.get_submodule(name)
                    module.weight.copy_(own.weight + sign * edit)
                read = [stream(lm, model, one, first + 2)[-2:].mean(0) for one in ids]
                moved.append((1 if sign else -1) * torch.stack(read).mean(0))
    wanted = torch.stack(moved).unflatten(0, (2, 2)).sum(1)
    torch.testing.assert_close(slice_(theta), wanted, rtol=1e-3, atol=1e-5)


def test_twins_are_the_same_change_and_opposites_the_opposite(make_lm):
    slice_ = BandSlice(double(make_lm, "llama"), IDS, BAND, TARGET, positions=3)
    kind, theta = slice_.perturbation, rows(slice_, 1)
    (a, b), (c, d) = kind.parts(theta)
    twin, opposite = torch.cat([-a, -b, c, d], 1), kind.opposite(theta)
    with torch.no_grad():
        plain, turned = slice_(theta), slice_(torch.cat([twin, opposite]))
    torch.testing.assert_close(turned[:1], plain)
    for (one, other), (A, B) in zip(kind.changes(opposite), kind.changes(theta), strict=True):
        torch.testing.assert_close(other[0, :, None] * one[0], -B[0, :, None] * A[0])
    unit = theta / theta.norm()
    assert float(kind.cosines(unit, kind.unit(twin))) == pytest.approx(1)
    assert float(kind.cosines(unit, kind.unit(opposite))) == pytest.approx(-1)


def test_cosines_are_those_of_the_changes_as_matrices():
    kind = RankOne.of(3, (5, 7), 4, ("x", "y"))
    V = kind.random(6, 0).double()
    flat = torch.stack([
        torch.cat([torch.outer(b[k], a[k]).flatten() for a, b in kind.changes(V)]) for k in range(len(V))
    ])  # fmt: skip
    wanted = normalize(flat, dim=1) @ normalize(flat, dim=1).T
    torch.testing.assert_close(kind.cosines(V, V), wanted)
    F = kind.stand_ins(V)
    torch.testing.assert_close(F @ F.T, wanted)
    # The push: the way on which the cosines with the others, weighed, grow the fastest.
    W, at = torch.rand(6, 6, dtype=F64).fill_diagonal_(0), V.clone().requires_grad_()
    [gradient] = torch.autograd.grad((W * kind.cosines(at, V)).sum(), at)
    # cos counts each of a and b as a / sqrt(2L), L = 2: d<a, a'> / d(a / sqrt(2L)) = 2 a' / sqrt(2L)
    torch.testing.assert_close(gradient / 2, kind.apart(V, W))


def test_the_layout_of_rows_is_the_one_that_is_declared():
    kind = RankOne.of(1, (3, 3), 2, ("x", "y"))
    row = kind.unit(torch.arange(1.0, 11.0)[None])
    assert float(row.norm()) == pytest.approx(1)
    (a, b), (c, d) = kind.changes(2.5 * row)
    torch.testing.assert_close(a / a.norm(), normalize(torch.tensor([[1.0, 2, 3]]), dim=1))
    torch.testing.assert_close(b / b.norm(), normalize(torch.tensor([[4.0, 5]]), dim=1))
    torch.testing.assert_close(c / c.norm(), normalize(torch.tensor([[6.0, 7, 8]]), dim=1))
    assert float(a.norm() * b.norm()) == pytest.approx(2.5) == pytest.approx(float(c.norm() * d.norm()))
    assert recorded(kind.config, 10) == kind
    assert recorded({}, 10) == Perturbation(10)


@pytest.mark.parametrize("lanes", [1, 4])
def test_every_row_has_its_own_change_whatever_runs_beside_it(make_lm, monkeypatch, lanes):
    slice_ = BandSlice(make_lm("llama"), IDS, BAND, TARGET, positions=3)
    monkeypatch.setattr(type(slice_), "lanes", lanes)
    from dct.derivatives import Derivatives

    theta, u = rows(slice_, 12).float(), normalize(torch.randn(12, WIDTH), dim=1)
    together = Derivatives(slice_, slice_.dim, batch=8).value_and_gradient(theta, u)
    alone = Derivatives(slice_, slice_.dim, batch=1).value_and_gradient(theta, u)
    for got, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_nothing_of_a_change_stays_behind(make_lm):
    lm = make_lm("llama")
    ids = torch.tensor([IDS[0]])
    before = lm.model(ids).logits
    kind = rank_one(lm, *BAND)
    with suppress(RuntimeError), changed(lm, kind, 2 * kind.random(1, 0)):
        assert float((lm.model(ids).logits - before).norm()) > 1
        twin = copy.deepcopy(lm.model)
        torch.testing.assert_close(twin(ids).logits, before)  # a copy is another model
        raise RuntimeError("on the way")
    torch.testing.assert_close(lm.model(ids).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_what_is_said_under_a_change_is_what_the_edited_copy_says(make_lm, architecture):
    lm = make_lm(architecture)
    kind = rank_one(lm, *BAND)
    theta = 1.5 * kind.random(len(IDS), 1)
    said = dct.complete(lm, IDS, theta, kind, max_new_tokens=12)
    wanted = []
    for row, ids in zip(theta, IDS, strict=True):
        model = edited(lm, row)
        out = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=12, do_sample=False
        )
        wanted.append(lm.decode(out[0, len(ids) :].tolist()))
    assert said == wanted
    assert said != dct.complete(lm, IDS, max_new_tokens=12)


def test_only_generated_tokens_can_be_changed(make_lm):
    """The prompt alone: the first new token is that of the edited copy, and keys and values of the prompt with it."""
    lm = make_lm("llama")
    kind = rank_one(lm, *BAND)
    theta = 3 * kind.random(1, 1)[0]
    ids = torch.tensor([IDS[0]])
    with dct.steer(lm, theta, kind, tokens="generated"), torch.no_grad():
        torch.testing.assert_close(lm.model(ids, use_cache=False).logits, lm.model(ids).logits)
    with dct.steer(lm, theta, kind, tokens="prompt"), torch.no_grad():
        torch.testing.assert_close(lm.model(ids).logits, edited(lm, theta)(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("theta", "site", "said"),
    [
        (torch.zeros(5), RankOne.of(1, (32,), 32, ("model.layers.1.self_attn.o_proj",)), "has 64 entries"),
        (torch.zeros(64), RankOne.of(9, (32,), 32, ("model.layers.9.self_attn.o_proj",)), "pass the right `model`"),
        (torch.zeros(64), RankOne.of(1, (32,), 32, ("model.layers.1.attn.c_proj",)), "pass the right `model`"),
        (torch.full((64,), torch.nan), RankOne.of(1, (32,), 32, ("model.layers.1.self_attn.o_proj",)), "not finite"),
    ],
)
def test_changes_of_another_model_are_refused(make_lm, theta, site, said):
    with pytest.raises(DctError, match=said), dct.steer(make_lm("llama"), theta, site):
        pass


def test_a_block_without_attention_is_refused(make_lm):
    """Not its MLP's matrix taken for it, although that is handed what attention has mixed."""
    lm = make_lm("llama")

    class Renamed(torch.nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.inner, self.mixer = [attention], attention.o_proj

        def forward(self, *args, **kwargs):
            return self.inner[0](*args, **kwargs)

    assert rank_one(lm, 1, 2).modules[1] == "model.layers.2.self_attn.o_proj"
    lm.layers[2].self_attn = Renamed(lm.layers[2].self_attn)
    lm.projections.clear()
    with pytest.raises(DctError, match=r"block 2 of llama .* has no attention output projection .* `band`"):
        rank_one(lm, 1, 2)


@pytest.mark.parametrize(
    ("depth", "wanted"), [(32, (7, 10, 18)), (36, (8, 12, 20)), (24, (5, 8, 14)), (12, (3, 4, 7)), (2, (0, 1, 2))]
)
def test_the_default_band(depth, wanted):
    assert default_band(depth) == wanted
    assert choose_band(depth, None, None) == wanted


def test_a_band_and_a_target_that_were_given():
    assert choose_band(32, (10, 13), None) == (10, 13, 21)
    assert choose_band(32, (28, 31), None) == (28, 31, 32)
    assert choose_band(32, None, 5) == (1, 4, 5)
    assert choose_band(32, (3, 3), 4) == (3, 3, 4)
    for band, target in [((7, 10), 10), ((7, 10), 33), ((30, 33), None), (None, 0)]:
        with pytest.raises(DctError, match="a band must lie below the target"):
            choose_band(32, band, target)


class Planted:
    """A map of rank-1 changes with known factors: sum_k s_k u_k (exp(c <E(theta), E_k>) - 1), E the change as matrices.

    <E, E_k> = (1/L) sum_l <b a', b_k a_k'>, so that a change that is the opposite, or one with twins' signs, is seen as
    what it is.
    """

    usual_scale = 1.0

    def __init__(self, count: int) -> None:
        self.perturbation = RankOne.of(0, (12, 12), 16, ("x", "y"))
        self.true = self.perturbation.random(count, 99)
        generator = torch.Generator().manual_seed(7)
        self.u = torch.linalg.qr(torch.randn(24, count, generator=generator)).Q.T

    def __call__(self, theta: Tensor) -> Tensor:
        length = theta.norm(dim=1, keepdim=True)
        cosines = self.perturbation.cosines(theta / length.clamp_min(1e-30), self.true.to(theta))
        return torch.expm1(2 * length * cosines) @ self.u.to(theta)


def test_planted_changes_are_found_each_once():
    planted = Planted(6)
    kind = planted.perturbation
    found = dct.fit(planted, kind.dim, method="cpe", factors=40, iterations=30, seed=1)
    assert found.scale == 1.0
    cosines = kind.cosines(found.V, planted.true)
    assert float(cosines.max(0).values.min()) > 0.95  # each of them by some factor
    lone = dct.fit(planted, kind.dim, method="cpe", factors=40, iterations=30, seed=1, orthogonalize="none")
    spread, crowded = (kind.cosines(V, V).fill_diagonal_(0).max(1).values.median() for V in (found.V, lone.V))
    assert float(spread) < float(crowded)


def test_every_part_has_unit_length_after_a_fit(make_lm, tmp_path):
    slice_ = BandSlice(make_lm("llama"), IDS, BAND, TARGET, positions=3)
    states = []
    found = dct.fit(slice_, slice_.dim, method="cpe", factors=5, iterations=3, checkpoint=states.append)
    assert found.info["perturbation"]["first"] == FIRST
    for V in (found.V, *(state.V for state in states)):
        for parts in slice_.perturbation.parts(V):
            for part in parts:  # phi / sqrt(2L), L = 2
                torch.testing.assert_close(2 * part.norm(dim=1), torch.ones(len(V)))
    again = dct.fit(slice_, slice_.dim, method="cpe", factors=5, iterations=3, resume=states[0])
    torch.testing.assert_close(again.V, found.V)
    assert found.objective[-1, 0] > found.objective[0, 0]
    assert found.info["response"][0] > found.info["random_response"][1]
    loaded = dct.Factors.load(found.save(tmp_path / "f.safetensors"))
    assert recorded(loaded.info, loaded.V.shape[1]) == slice_.perturbation
    loaded.V[1, :WIDTH] *= 1.5
    with pytest.raises(DctError, match="row 1 of its V"):
        loaded.save(tmp_path / "g.safetensors")


def test_its_fit_is_what_is_measured_on_edited_copies(make_lm):
    """The outputs and the size of what the factors cause, by whole models with other weights."""
    lm = make_lm("gpt_neox")
    slice_ = BandSlice(lm, IDS, BAND, TARGET, positions=3)
    found = dct.fit(slice_, slice_.dim, method="cpe", factors=3, iterations=2, scale=0.8)
    caused = torch.stack([by_hand(lm, 0.8 * row) for row in found.V])
    torch.testing.assert_close(normalize(caused, dim=1), found.U, rtol=1e-3, atol=1e-4)
    assert float(caused.norm(dim=1).max()) == pytest.approx(found.info["response"][1], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"method": "exponential"}, "choose cpe"), ({"method": "cpe", "orthogonalize": "qr"}, "soft or none")],
)
def test_what_does_not_go_with_changes_is_refused(changes, said):
    planted = Planted(2)
    with pytest.raises(UsageError, match=said):
        dct.fit(planted, planted.perturbation.dim, factors=3, **changes)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_adapter_that_is_exported_is_the_change(make_lm, tmp_path, architecture):
    peft = pytest.importorskip("peft")
    from dct.exporting import Parcel, export

    lm = make_lm(architecture)
    kind = rank_one(lm, *BAND)
    direction = kind.random(1, 4)
    info = {"model": architecture, "scale": 1.0, "source": FIRST, "target": TARGET}
    parcel = Parcel(direction, [1.7], ["0"], FIRST, info=info, lm=lm, changes=kind)
    done = export(parcel, "peft", tmp_path / "adapter")
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    assert "blocks 1-2" in card
    assert "R b a'" in card
    ids = torch.tensor([IDS[0]])
    wanted = edited(lm, 1.7 * direction[0])(ids).logits
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(lm.model), done.folder)
    torch.testing.assert_close(adapted(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    assert adapted.peft_config["default"].r == adapted.peft_config["default"].lora_alpha == 1


def test_what_other_formats_say_of_changes(make_lm, tmp_path):
    from dct.exporting import Parcel, export

    lm = make_lm("llama")
    kind = rank_one(lm, *BAND)
    parcel = Parcel(kind.random(1, 4), [1.0], ["0"], FIRST, lm=lm, changes=kind)
    with pytest.raises(UsageError, match=r"gguf holds vectors of the stream.*choose peft"):
        export(parcel, "gguf", tmp_path / "x")
