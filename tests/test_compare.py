"""Runs beside each other: against planted matches, every permutation, SciPy's angles and a planted SAE."""

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file
from test_cli import as_json, config, ok, run

import dct
from dct.calibration import random_directions
from dct.errors import DctError
from dct.factors import Factors
from dct.likeness import likeness
from dct.matching import assigned, matched, overlap
from dct.nexttoken import NextTokens
from dct.sae import Sae, nearest
from dct.siblings import are_siblings, siblings, stability

WIDTH = 48


def rotation(d: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].float()


def factors(V: torch.Tensor, seed: int = 0, **info: object) -> Factors:
    told = {"fingerprint": "f", "source": 1, "target": 3, "method": "exponential", "seed": seed, "prompts": ["a"]}
    return Factors(V, V.roll(1, 0), torch.ones(len(V)), torch.zeros(1, 3), 1.0, {**told, **info})


def stored(folder: Path, one: Factors) -> Path:
    folder.mkdir(parents=True)
    one.save(folder / "factors.safetensors")
    return folder


# --- matching ---------------------------------------------------------------------------------------------------------


def test_planted_permutations_and_signs_are_found():
    a = random_directions(12, WIDTH, 0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    signs = torch.tensor([1.0, -1.0]).repeat(6)
    b = signs[:, None] * a[order]
    found = matched(a, b)
    assert {j: i for i, j in found.pairs} == dict(enumerate(order.tolist()))
    for (_, j), cosine in zip(found.pairs, found.cosines, strict=True):
        assert cosine == pytest.approx(float(signs[j]), abs=1e-5)
    assert (found.mean, found.beyond) == (pytest.approx(1.0, abs=1e-5), 12)
    assert 0.1 < found.chance < found.limit < 0.7


def test_a_turn_by_a_known_angle_is_the_cosine_of_every_pair():
    basis = rotation(WIDTH, 2)
    a, away = basis[:8], basis[8:16]
    b = math.cos(0.4) * a + math.sin(0.4) * away
    found = matched(a, b.flip(0))
    assert found.pairs == tuple((k, 7 - k) for k in range(8))
    assert found.cosines == pytest.approx([math.cos(0.4)] * 8, abs=1e-5)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 6), (6, 4)])
def test_no_other_assignment_is_better(n, m):
    """Every one of them is tried; greedy pairs are worse here at least once."""
    greedy_loses = False
    for seed in range(8):
        a, b = random_directions(n, 6, seed), random_directions(m, 6, 100 + seed)
        cosines = (a @ b.T).abs().double()
        small, table = min(n, m), cosines if n <= m else cosines.T
        most = max(
            sum(float(table[i, j]) for i, j in enumerate(js)) for js in itertools.permutations(range(max(n, m)), small)
        )
        rows, columns, found = assigned(a, b)
        assert float(found.abs().sum()) == pytest.approx(most, abs=1e-6)
        assert len(set(rows)) == len(set(columns)) == small
        left, greedy = cosines.clone(), 0.0
        for _ in range(small):
            at = int(left.argmax())
            greedy += float(left.max())
            left[at // m], left[:, at % m] = -1, -1
        greedy_loses |= greedy < most - 1e-3
    assert greedy_loses


def test_chance_is_what_other_random_sets_give():
    a = random_directions(16, WIDTH, 3)
    said = matched(a, random_directions(16, WIDTH, 4), seed=5)
    drawn = torch.cat([assigned(a, random_directions(16, WIDTH, 1000 + k))[2].abs() for k in range(60)])
    assert said.chance == pytest.approx(float(drawn.mean()), rel=0.1)
    assert float((drawn > said.limit).double().mean()) == pytest.approx(0.05, abs=0.03)
    assert said.beyond <= 4  # of 16; one is expected


# --- subspaces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(6, 6), (3, 9), (9, 3)])
def test_overlaps_are_those_of_scipys_angles(n, m):
    a, b = random_directions(n, 20, 0), random_directions(m, 20, 1)
    angles = scipy.linalg.subspace_angles(a.T.double().numpy(), b.T.double().numpy())
    found = overlap(a, b)
    assert found.share == pytest.approx(float((np.cos(angles) ** 2).mean()), abs=1e-6)
    assert found.chance == max(n, m) / 20


def test_the_chance_of_an_overlap_is_its_mean_over_random_spaces():
    a = random_directions(5, 30, 0)
    shares = [overlap(a, random_directions(8, 30, 1 + k)).share for k in range(300)]
    assert np.mean(shares) == pytest.approx(8 / 30, rel=0.03)


def test_other_vectors_of_one_subspace_overlap_wholly():
    a = rotation(WIDTH, 0)[:6]
    mixed = rotation(6, 1) @ a
    assert overlap(a, torch.cat([mixed, mixed[:2]])).share == pytest.approx(1.0, abs=1e-6)
    assert matched(a, mixed).mean < 0.9
    assert overlap(a, torch.zeros(3, WIDTH)) is None


# --- stability --------------------------------------------------------------------------------------------------------


def test_stability_is_high_where_vectors_come_again():
    a = random_directions(10, WIDTH, 0)
    half = torch.cat([a[:5], random_directions(5, WIDTH, 9)])
    found = stability(factors(a), [factors(half, 1), factors(half.flip(0), 2)])
    assert found.runs == 2
    assert found.values[:5] == pytest.approx([1.0] * 5, abs=1e-5)
    assert max(found.values[5:]) < 0.6
    assert found.of("-3") == found.values[3]
    assert 0.1 < found.chance < 0.4
    assert stability(factors(a), []) is None


def test_siblings_differ_in_seed_or_prompts_alone(tmp_path):
    a = random_directions(4, WIDTH, 0)
    one = factors(a)
    assert are_siblings(one, factors(a, 1))
    assert are_siblings(one, factors(a, prompts=["b"]))
    assert not are_siblings(one, factors(a))
    for key, value in {"fingerprint": "g", "source": 0, "target": 4, "method": "qr"}.items():
        assert not are_siblings(one, factors(a, 1, **{key: value}))
    assert not are_siblings(one, factors(random_directions(4, 12, 0), 1))
    folder = stored(tmp_path / "one", one)
    stored(tmp_path / "two", factors(a, 1))
    stored(tmp_path / "other", factors(a, 1, source=0))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "factors.safetensors").write_bytes(b"nothing")
    assert [other.info["seed"] for other in siblings(dct.runs.find_run(folder), one)] == [1]


# --- an SAE -----------------------------------------------------------------------------------------------------------


def planted(folder: Path, V: torch.Tensor, hook: str = "blocks.1.hook_resid_pre", dtype=torch.float32) -> torch.Tensor:
    """An SAE of 300 features, of which number 40 + k is vector k, turned round and three times as long."""
    decoder = random_directions(300, V.shape[1], 77)
    decoder[40 : 40 + len(V)] = -3.0 * V
    decoder[7] = 0.0
    folder.mkdir()
    save_file({"W_dec": decoder.to(dtype), "W_enc": decoder.T.contiguous()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"metadata": {"hook_name": hook}, "d_in": V.shape[1]}))
    return decoder


@pytest.mark.parametrize("chunk", [1 << 24, 17 * WIDTH])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planted_features_are_found_in_pieces_as_whole(tmp_path, monkeypatch, chunk, dtype):
    monkeypatch.setattr("dct.sae.CHUNK", chunk)
    V = random_directions(6, WIDTH, 0)
    decoder = planted(tmp_path / "sae", V, dtype=dtype)
    found = nearest(Sae.open(tmp_path / "sae"), V)
    unit = torch.nn.functional.normalize(decoder.to(dtype).double(), dim=1)
    for k, v in enumerate(V.double()):
        assert found.features[k][0] == 40 + k
        assert found.cosines[k][0] == pytest.approx(-1.0, abs=1e-3)
        cosines = unit @ v
        best = cosines.abs().argsort(descending=True)[:5]
        assert found.features[k] == best.tolist()
        assert found.cosines[k] == pytest.approx(cosines[best].tolist(), abs=1e-5)
    assert sum(found.histogram) == found.histogram[-1] == 6


def test_an_sae_says_its_place_and_other_files_are_refused(tmp_path):
    V = random_directions(2, WIDTH, 0)
    planted(tmp_path / "a", V, "blocks.4.hook_resid_post")
    assert Sae.open(tmp_path / "a").layer == 5
    planted(tmp_path / "b", V)
    assert Sae.open(tmp_path / "b" / "sae_weights.safetensors").layer == 1
    planted(tmp_path / "c", V, "blocks.4.hook_mlp_out")
    assert Sae.open(tmp_path / "c").layer is None
    with pytest.raises(DctError, match="no file"):
        Sae.open(tmp_path / "none")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(DctError, match="is no safetensors file"):
        Sae.open(tmp_path / "text")
    save_file({"weight": V}, tmp_path / "other.safetensors")
    with pytest.raises(DctError, match=r"W_dec of \[features, width\], and it holds weight"):
        Sae.open(tmp_path / "other.safetensors")
    with pytest.raises(DctError, match="has width 48 and the vectors 12"):
        nearest(Sae.open(tmp_path / "a"), random_directions(2, 12, 0))


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_twins_of_two_runs_are_of_one_kind(make_lm):
    lm = make_lm("llama")
    near = NextTokens(lm, 2, lm.encode(["How do I bake bread?", "pick the moon"]))
    a = 40.0 * random_directions(3, lm.width, 0)
    found = likeness(near, [a, a.flip(0)], seed=1, cut=0.01)
    assert all(count[0] == count[1] for count in found.counts if sum(count[:2]))
    assert found.mates[0][1] == found.changing[0] == 3
    assert found.shared(2) == sum(count[0] > 0 for count in found.counts)
    assert found.cosine > 0.99
    assert found.cosine_chance == pytest.approx(0.6745 / lm.width**0.5, rel=0.5)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds_once(tmp_path_factory, model_folder) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    quick = ["--factors", 6, "--iterations", 1, "--n", 2, "--scale", 2.0]
    for seed in (0, 1):
        ok("fit", "--model", model_folder, *quick, "--seed", seed, "--out", folder / "runs" / f"s{seed}")
    return folder / "runs"


@pytest.fixture
def seeds(seeds_once, workplace) -> Path:
    shutil.copytree(seeds_once, workplace / "runs")
    return workplace / "runs"


def test_two_seeds_are_compared(seeds):
    content = as_json("compare", "runs/s0", "runs/s1", "--out", "said.json")
    assert json.loads(Path("said.json").read_text()) == content
    [pair] = content["pairs"]
    a, b = (Factors.load(seeds / name / "factors.safetensors") for name in ("s0", "s1"))
    for i, j, cosine in pair["V"]["pairs"]:
        assert cosine == pytest.approx(float(a.V[i] @ b.V[j]), abs=1e-5)
    assert pair["V"]["mean"] == pytest.approx(np.mean([abs(c) for *_, c in pair["V"]["pairs"]]))
    assert pair["overlap_V"]["chance"] == pytest.approx(6 / 32)
    assert [s["runs"] for s in content["stability"]] == [1, 1]
    assert [one["seed"] for one in content["runs"]] == [0, 1]
    assert content["kinds"] is content["sae"] is None
    printed = ok("compare", "runs/s0", "runs/s1").output
    assert f"{pair['V']['mean']:.2f} ({pair['V']['chance']:.2f})" in printed
    assert "where chance gives" in printed
    assert "dct compare runs/s0 runs/s1 --kinds" in printed


def test_kinds_are_those_of_every_run_beside_random_vectors(seeds):
    content = as_json("compare", "runs/s0", "runs/s1", "--kinds")["kinds"]
    assert content["vectors"] == [6, 6]
    for k in range(2):
        named = [name for kind in content["kinds"] for name in kind["vectors"][k]]
        assert len(named) == len(set(named)) == content["changing"][k]
    assert "kinds" in ok("compare", "runs/s0", "runs/s1", "--kinds").output


def test_an_sae_needs_one_run_and_says_where_it_belongs(seeds):
    V = Factors.load(seeds / "s0" / "factors.safetensors").V
    source = config(seeds / "s0" / "factors.safetensors")["source"]
    planted(Path("sae"), V, f"blocks.{source}.hook_resid_pre")
    content = as_json("compare", "runs/s0", "--sae", "sae")["sae"]
    assert [(one["run"], one["side"]) for one in content["sides"]] == [("s0", "V"), ("s0", "U"), (None, "random")]
    assert [row[0] for row in content["sides"][0]["features"]] == list(range(40, 46))
    assert content["layer"] == source
    assert "6 of 6 rows of V" in content["meaning"]
    printed = ok("compare", "runs/s0", "--sae", "sae")
    assert "-1.00" in printed.output
    assert "warning" not in printed.output
    planted(Path("far"), V, "blocks.40.hook_resid_pre")
    assert "the SAE is of layer 40" in ok("compare", "runs/s0", "--sae", "far").output


def test_rank_shows_how_stable_vectors_are(seeds):
    content = as_json("rank", "runs/s0", "--screen-only", "--n", 1)
    assert content["stability"]["runs"] == 1
    assert len(content["stability"]["values"]) == 6
    saved = json.loads((seeds / "s0" / "rank.json").read_text())
    assert saved["stability"] == content["stability"]
    printed = ok("rank", "runs/s0", "--screen-only", "--n", 1).output
    assert "stable" in printed
    assert f"chance gives {content['stability']['chance']:.2f}" in printed
    shutil.rmtree(seeds / "s1")
    again = ok("rank", "runs/s0", "--screen-only", "--n", 1)
    assert "stable" not in again.output


def test_what_cannot_be_compared_is_told(seeds):
    assert "takes two runs or more" in run("compare", "runs/s0").output
    assert "takes two runs or more" in run("compare").output
    assert run("compare", "runs/s0").exit_code == 2
    assert "named twice" in run("compare", "runs/s0", "runs/../runs/s0").output
    stored(Path("narrow"), factors(random_directions(4, 12, 0)))
    assert "compare runs of one model" in run("compare", "runs/s0", "narrow").output
    stored(Path("other"), factors(random_directions(4, 32, 0)))
    told = ok("compare", "runs/s0", "other").output
    assert "different models" in told
    assert "leave --kinds out" in run("compare", "runs/s0", "other", "--kinds").output
    (Path("text.safetensors")).write_text("nothing")
    assert "no safetensors file" in run("compare", "runs/s0", "--sae", "text.safetensors").output
