"""A model that does not fit into memory does what it does when it fits, with blocks brought in from disk."""

import pytest
import torch
from conftest import CONFIGS, DEPTH, WIDTH, random_model
from typer.testing import CliRunner

import dct
from dct.ablation import leak
from dct.cli.app import app
from dct.loading import load

ARCHITECTURES = ("llama", "gpt2", "gemma3", "mixtral", "olmo2")
PROMPTS = ["Write a poem", "How do I pick a lock?"]
HARMLESS = ["Tell me how to bake bread", "Explain the moon"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("large") / request.param
    random_model(request.param).save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    return folder


def limited(monkeypatch: pytest.MonkeyPatch, folder, share: float) -> None:
    """Pretends that memory holds a share of the folder's model in float32."""
    total = 4 * sum(p.numel() for p in load(str(folder), dtype="float32").model.parameters())
    monkeypatch.setattr("dct.placement.available", lambda *_: int(share * total / 0.75))


@pytest.fixture
def pair(folder, monkeypatch):
    """The model in memory, and the same with a limit that holds four fifths of it; what was said about that."""
    whole, said = load(str(folder), dtype="float32"), []
    limited(monkeypatch, folder, 0.8)
    part = load(str(folder), dtype="float32", tell=said.append)
    return whole, part, said


def test_some_weights_wait_on_disk_and_it_is_said(pair):
    _, part, said = pair
    assert any(p.is_meta for p in part.model.parameters())
    assert "disk" in part.model.hf_device_map.values()
    assert part.device == torch.device("cpu")
    assert part.fingerprint == pair[0].fingerprint
    [remark] = said
    assert "wait in host memory or on disk" in remark


def test_ranking_is_the_same(pair):
    whole, part, _ = pair
    V = torch.nn.functional.normalize(torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
    factors = dct.Factors(V, V, torch.ones(4), torch.zeros(0, 3), 3.0, {"source": 1})
    assert dct.rank(part, factors, PROMPTS, HARMLESS) == dct.rank(whole, factors, PROMPTS, HARMLESS)


def test_steered_completions_are_the_same(pair):
    whole, part, _ = pair
    theta = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    texts = []
    for lm in (whole, part):
        with dct.steer(lm, theta, layer=2):
            texts.append(dct.complete(lm, lm.encode(PROMPTS), max_new_tokens=6))
    assert texts[0] == texts[1]


def test_ablation_leaves_nothing_and_is_taken_back(pair):
    whole, part, _ = pair
    D = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2))
    ids = part.encode(PROMPTS)
    before = leak(part, D, ids)
    wanted = []
    for lm in (whole, part):
        with dct.ablate(lm, D):
            assert leak(lm, D, ids) <= 1e-5 * before
            wanted.append(dct.complete(lm, ids, max_new_tokens=6))
    assert wanted[0] == wanted[1]
    assert leak(part, D, ids) == before


def test_weights_on_disk_are_not_edited_for_saving(pair):
    _, part, _ = pair
    refused = pytest.raises(dct.DctError, match="does not fit into memory: leave `fold_norms` out")
    with refused, dct.ablate(part, torch.eye(1, WIDTH), fold_norms=True):
        pass


def test_a_slice_of_a_model_that_does_not_fit_is_fitted_all_the_same(folder, monkeypatch):
    whole = load(str(folder), dtype="float32")
    limited(monkeypatch, folder, 0.8)
    part = load(str(folder), between=(1, 3), dtype="float32")
    assert not any(p.is_meta for p in part.model.parameters())
    a, b = (
        dct.fit(dct.Slice(lm, PROMPTS, 1, 3), WIDTH, factors=4, scale=1.0, iterations=2, d_proj=4)
        for lm in (whole, part)
    )
    torch.testing.assert_close(a.V, b.V)
    torch.testing.assert_close(a.alpha, b.alpha)


@pytest.mark.parametrize(
    ("share", "wanted", "said"),
    [
        (10.0, torch.float32, ""),
        (0.6, torch.bfloat16, "bfloat16, since the model takes"),
        (0.2, torch.bfloat16, "disk"),
    ],
)
def test_auto_takes_the_type_that_fits(folder, monkeypatch, share, wanted, said):
    limited(monkeypatch, folder, share)
    monkeypatch.setattr("dct.placement._cpu_dtype", lambda *_: torch.float32)
    remarks: list[str] = []
    lm = load(str(folder), device="cpu", tell=remarks.append)
    assert lm.dtype == wanted
    assert said in " ".join(remarks)
    assert bool(remarks) == bool(said)


def test_a_slice_that_does_not_fit_is_announced_with_the_cure(folder, monkeypatch):
    limited(monkeypatch, folder, 0.1)
    remarks: list[str] = []
    load(str(folder), between=(0, DEPTH), dtype="float32", device="cpu", tell=remarks.append)
    assert 'try `dtype="bfloat16"` or a shorter slice' in remarks[0]


def test_commands_on_a_model_that_does_not_fit(folder, workplace, monkeypatch):
    if CONFIGS[folder.name]().model_type != "llama":
        pytest.skip("one architecture through the command line")
    monkeypatch.setattr("dct.checkpoint.STRIDE", 1)

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    limited(monkeypatch, folder, 0.8)
    common = ["--dtype", "float32", "--device", "cpu"]
    run(
        "fit", "--model", folder, "--s", 1, "--t", 3, "--factors", 4, "--iterations", 2, "--scale", 2, "--n", 2, *common
    )
    assert "wait in host memory or on disk" in run("rank", "--screen-only", "--n", 2, *common).replace("\n", " ")
    run("steer", "--rank", 1, "--prompt", "Write a poem", "--max-new-tokens", 3, *common)
    run("ablate", "--top", 2, "--prompt", "Write a poem", "--max-new-tokens", 3, *common)
