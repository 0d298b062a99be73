"""Exports, each read back by the program that it is for, and the same as what this package does itself."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WIDTH, random_model
from safetensors import safe_open
from safetensors.torch import load_file
from test_cli import as_json, fitted, fitted_once, ok, run, strict  # noqa: F401 (fixtures)
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer

import dct
from dct import DctError, UsageError
from dct.export.transformers import carrier
from dct.exportcard import plain
from dct.exporting import ABLATION, ADDITION, REGISTRY, Parcel, export, format_named

IDS = torch.tensor([[1, 5, 9, 20, 31, 7, 8, 9, 44]])
FORMATS = ("easysteer", "gguf", "npz", "peft", "repeng", "safetensors", "transformers")
ARCHITECTURES = ("llama", "qwen2", "gpt2", "gpt_neox", "phi3", "gemma2", "olmo2")
INFO = {"model": "someone/tiny", "fingerprint": "sha256:0123", "source": 2, "target": 4}


def directions(n: int = 1) -> torch.Tensor:
    return normalize(torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(5)), dim=1)


def parcel(n: int = 1, layer: int = 2, **more: object) -> Parcel:
    norms = [1.5 + k for k in range(n)]
    return Parcel(directions(n), norms, [str(3 + k) for k in range(n)], layer, info=INFO, kind="llama", **more)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS, use_cache=False).logits.double()


@torch.no_grad()
def greedy(model, new: int = 12) -> list[list[int]]:
    """Greedy completions of 20 prompts, token by token without a cache."""
    rows = []
    for k in range(20):
        ids = torch.tensor([[(k + 3) * (j + 1) % 290 + 6 for j in range(5)]])
        for _ in range(new):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        rows.append(ids[0, 5:].tolist())
    return rows


@pytest.fixture
def source(tmp_path, tokenizer):
    """Factory of a user's model folder."""

    def make(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
        folder = tmp_path / "source"
        random_model(architecture).to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


# --- formats ----------------------------------------------------------------------------------------------------------


def test_formats_are_files_in_a_folder():
    assert REGISTRY.built_in() == FORMATS
    for name in FORMATS:
        how = format_named(name)
        assert how.name == name
        assert set(how.carries) <= {ADDITION, ABLATION}
        assert set(how.weights) <= set(how.carries)
    with pytest.raises(UsageError, match=r"unknown `format` 'ggml': choose .*gguf"):
        format_named("ggml")


def gguf_read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
    return {t.name: np.array(t.data) for t in reader.tensors}, {n: f.contents() for n, f in reader.fields.items()}


@pytest.mark.parametrize("name", ["gguf", "repeng", "easysteer"])
def test_a_control_vector_is_what_llama_cpp_reads(tmp_path, name):
    sent = parcel()
    export(sent, name, tmp_path / "out")
    tensors, fields = gguf_read(tmp_path / "out/control-vector.gguf")
    assert list(tensors) == ["direction.1"]  # all tensors must be directions; block 1 puts out what enters block 2
    assert tensors["direction.1"].shape == (WIDTH,)
    assert torch.equal(torch.from_numpy(tensors["direction.1"]), sent.vectors[0])
    assert float(sent.vectors[0].norm()) == pytest.approx(1.5)
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 1
    assert fields["controlvector.dct.layer"] == "2"
    assert fields["controlvector.dct.fingerprint"] == "sha256:0123"
    assert "hidden_states[2]" in str(fields["controlvector.dct.site"])


def test_easysteer_is_told_which_block(tmp_path):
    export(parcel(), "easysteer", tmp_path / "out")
    content = strict((tmp_path / "out/steering.json").read_text())
    every = {"prompt": "all", "generation": "all"}
    assert content == {"vectors": [{"source": "control-vector.gguf", "scale": 1.0, "layers": [1], "apply": every}]}


def test_layers_that_a_program_cannot_steer_are_refused(tmp_path):
    with pytest.raises(DctError, match=r"block 1 on.*block 1: fit with `source` 2.*npz.*repeng and easysteer"):
        export(parcel(layer=1), "gguf", tmp_path / "out")
    export(parcel(layer=1), "repeng", tmp_path / "one")
    assert list(gguf_read(tmp_path / "one/control-vector.gguf")[0]) == ["direction.0"]
    for name in ("gguf", "repeng", "easysteer"):
        with pytest.raises(DctError, match=r"`source` [12] or higher; or choose .*: safetensors and npz hold .*layer$"):
            export(parcel(layer=0), name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gguf_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("dct.export.shared.control.importlib.util.find_spec", lambda name: None)
    with pytest.raises(DctError, match=r"pip install 'deep-causal-transcoders\[gguf\]'"):
        export(parcel(), "gguf", tmp_path / "out")


def test_plain_tensors_are_r_v(tmp_path):
    sent = parcel(3, layer=0)
    wanted = torch.tensor([1.5, 2.5, 3.5])[:, None] * directions(3)
    export(sent, "safetensors", tmp_path / "a")
    assert torch.allclose(load_file(tmp_path / "a/vectors.safetensors")["vectors"], wanted, atol=1e-7)
    with safe_open(tmp_path / "a/vectors.safetensors", "pt") as file:
        about = file.metadata()
    assert (about["layer"], about["model"], about["fingerprint"]) == ("0", "someone/tiny", "sha256:0123")
    assert json.loads(about["norms"]) == [1.5, 2.5, 3.5]
    export(sent, "npz", tmp_path / "b")
    found = np.load(tmp_path / "b/vectors.npz", allow_pickle=False)
    assert np.allclose(found["vectors"], wanted.numpy(), atol=1e-7)
    assert int(found["layer"]) == 0
    assert found["names"].tolist() == ["3", "4", "5"]
    assert str(found["fingerprint"]) == "sha256:0123"


def test_plain_tensors_of_an_ablation_are_orthonormal(tmp_path):
    sent = parcel(3, ablate=True)
    for name, file in (("safetensors", "vectors.safetensors"), ("npz", "vectors.npz")):
        export(sent, name, tmp_path / name)
        path = tmp_path / name / file
        D = load_file(path)["directions"] if name == "safetensors" else torch.from_numpy(np.load(path)["directions"])
        assert torch.allclose(D @ D.T, torch.eye(3), atol=1e-6)
        assert torch.allclose(directions(3) @ D.T @ D, directions(3), atol=1e-6)


def test_what_a_format_does_not_carry_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"gguf holds no ablation: leave `ablate` out, or choose npz, peft, safetens"):
        export(parcel(ablate=True), "gguf", tmp_path / "out")
    with pytest.raises(UsageError, match=r"peft holds no addition: add `ablate`, or choose easysteer, gguf"):
        export(parcel(), "peft", tmp_path / "out")
    with pytest.raises(UsageError, match=r'gguf holds one vector, and 2 were chosen: pass `aggregate="mean"`'):
        export(parcel(2), "gguf", tmp_path / "out")
    nothing = Parcel(directions(), [0.0], ["3"], 2, info=INFO)
    with pytest.raises(DctError, match="zero or not finite: choose another `scale`"):
        export(nothing, "npz", tmp_path / "out")
    with pytest.raises(DctError, match="needs the model's weights"):
        export(parcel(ablate=True), "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_adapter_and_the_merged_weights_are_the_ablation(tmp_path, source, architecture):
    peft = pytest.importorskip("peft")
    folder = source(architecture)
    lm = dct.load(str(folder))
    sent = parcel(2, ablate=True, lm=lm)
    before = logits(lm.model)
    with dct.ablate(lm, sent.directions, fold_norms=True):
        wanted, said = logits(lm.model), greedy(lm.model)
    done = export(sent, "peft", tmp_path / "adapter")
    merged = export(sent, "transformers", tmp_path / "whole")
    assert torch.equal(logits(lm.model), before)  # the model is as it was
    assert float((wanted - before).abs().max()) > 0.01
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(done.folder))
    assert json.loads((done.folder / "adapter_config.json").read_text())["r"] == 2
    for model in (adapted.merge_and_unload(), AutoModelForCausalLM.from_pretrained(merged.folder)):
        assert float((logits(model.eval()) - wanted).abs().max()) < 2e-5
        assert greedy(model) == said


def test_what_the_type_loses_is_stated_and_true(tmp_path, source):
    folder = source()
    lm = dct.load(str(folder))
    sent = parcel(ablate=True, lm=lm, dtype="bfloat16")
    found = {}
    for name in ("peft", "transformers"):
        done = export(sent, name, tmp_path / name)
        found[name] = done.written.rounding["largest"]
        card = (done.folder / "README.md").read_text()
        assert f"largest difference of an entry to the edit in float64: {found[name]:.2g}" in card
        assert 1e-5 < found[name] < 0.02
    fine = export(parcel(ablate=True, lm=lm), "peft", tmp_path / "fine").written.rounding["largest"]
    assert fine < 1e-6
    # By hand: the adapter's product in float64 against the exact edit, over all matrices.
    [v] = normalize(directions().double(), dim=1)
    tensors = load_file(tmp_path / "peft/adapter_model.safetensors")
    worst = 0.0
    for name in [n for n in tensors if n.endswith("lora_A.weight")]:
        A, B = tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double()
        W = lm.model.get_parameter(name.split("base_model.model.")[1].replace("lora_A.weight", "weight")).double()
        worst = max(worst, float((B @ A + torch.outer(v, v @ W)).abs().max()))
    assert found["peft"] == pytest.approx(worst, rel=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("layer", [1, 3])
def test_a_bias_carries_an_addition(tmp_path, source, architecture, layer):
    folder = source(architecture)
    lm = dct.load(str(folder))
    sent = parcel(layer=layer, lm=lm)
    before = logits(lm.model)
    done = export(sent, "transformers", tmp_path / "out")
    assert torch.equal(logits(lm.model), before)
    with dct.steer(lm, sent.vectors[0], layer):
        wanted, said = logits(lm.model), greedy(lm.model)
    assert float((wanted - before).abs().max()) > 0.01
    opened = AutoModelForCausalLM.from_pretrained(done.folder).eval()
    assert float((logits(opened) - wanted).abs().max()) < 2e-5
    assert greedy(opened) == said
    assert AutoTokenizer.from_pretrained(done.folder)("bread")["input_ids"] == lm.tokenizer("bread")["input_ids"]
    changed = [n for n, p in opened.named_parameters() if not torch.equal(p, lm.model.get_parameter(n))]
    assert changed == [carrier(lm, layer)[0]]
    assert changed[0].endswith("bias")


@pytest.mark.parametrize(("architecture", "layer", "why"), [
    ("llama", 2, "nothing that block 1 of .* adds to the stream has a bias"),
    ("gemma2", 2, "nothing that block 1 of .* adds to the stream has a bias"),
    ("gpt2", 0, "no block of .* comes before layer 0"),
])  # fmt: skip
def test_an_addition_without_a_bias_is_refused(tmp_path, make_lm, architecture, layer, why):
    with pytest.raises(DctError, match=f"{why}.*: choose gguf or easysteer, or npz"):
        export(parcel(layer=layer, lm=make_lm(architecture)), "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- other programs ---------------------------------------------------------------------------------------------------


def test_repeng_steers_as_we_do(tmp_path, make_lm):
    repeng = pytest.importorskip("repeng")
    lm = make_lm("llama")
    sent = parcel(lm=lm)
    export(sent, "repeng", tmp_path / "out")
    with dct.steer(lm, sent.vectors[0], 2):
        wanted = logits(lm.model)
    vector = repeng.ControlVector.import_gguf(tmp_path / "out/control-vector.gguf")
    assert vector.model_type == "llama"
    theirs = repeng.ControlModel(lm.model, [1])
    try:
        theirs.set_control(vector, 1.0)
        assert float((logits(theirs) - wanted).abs().max()) < 1e-5
    finally:
        theirs.unwrap()


def test_llama_cpp_steers_as_we_do(tmp_path, tokenizer):
    """llama.cpp on the same model, and the file by the rules of its reader: direction.L at place L - 1."""
    bindings = pytest.importorskip("llama_cpp_py_sync._cffi_bindings")
    test_gguf = pytest.importorskip("test_gguf")
    test_gguf.written(tmp_path / "model.gguf", "llama", tokenizer)
    lm = dct.load(str(tmp_path / "model.gguf"))
    sent = parcel(layer=3)
    export(sent, "gguf", tmp_path / "out")
    tensors, _ = gguf_read(tmp_path / "out/control-vector.gguf")
    data = np.zeros((lm.depth, WIDTH), np.float32)
    for name, values in tensors.items():
        data[int(name.removeprefix("direction.")) - 1] += values
    before = logits(lm.model)
    with dct.steer(lm, sent.vectors[0], 3):
        wanted = logits(lm.model)
    assert float((wanted - before).abs().max()) > 0.1
    assert float((llama_logits(bindings, tmp_path / "model.gguf", None) - before).abs().max()) < 1e-2
    assert float((llama_logits(bindings, tmp_path / "model.gguf", data) - wanted).abs().max()) < 1e-2


def llama_logits(bindings, path: Path, data: np.ndarray | None) -> torch.Tensor:
    """Logits of `IDS` by llama.cpp, with a control vector for each block."""
    try:
        lib, ffi = bindings.get_lib(), bindings.get_ffi()
    except RuntimeError as error:  # its library is for another system
        pytest.skip(str(error))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    options = lib.llama_context_default_params()
    options.n_ctx, options.type_k, options.type_v, options.flash_attn_type = 64, 0, 0, 0
    context = lib.llama_init_from_model(model, options)
    if data is not None:
        given = ffi.cast("float *", data.ctypes.data)
        assert lib.llama_set_adapter_cvec(context, given, data.size, data.shape[1], 1, len(data)) == 0
    ids = IDS[0].tolist()
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for k, token in enumerate(ids):
        batch.token[k], batch.pos[k], batch.n_seq_id[k], batch.logits[k] = token, k, 1, 1
        batch.seq_id[k][0] = 0
    assert lib.llama_decode(context, batch) == 0
    words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    rows = [ffi.buffer(lib.llama_get_logits_ith(context, k), 4 * words) for k in range(len(ids))]
    found = torch.tensor(np.stack([np.frombuffer(row, np.float32) for row in rows])[None]).double()
    lib.llama_free(context)
    lib.llama_model_free(model)
    return found


# --- the folder and its card ------------------------------------------------------------------------------------------


def test_an_export_is_whole_or_not_there_and_is_replaced_on_demand(tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(parcel(), "npz", out)
    with pytest.raises(DctError, match="not empty: name a new folder as `out`, or pass `force`"):
        export(parcel(), "npz", out)
    export(parcel(layer=3), "safetensors", out, replace=True)
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "dct.json", "vectors.safetensors"]
    assert strict((out / "dct.json").read_text())["layer"] == "3"
    with monkeypatch.context() as patch:
        patch.setattr("dct.exportcard.card", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(parcel(), "npz", out, replace=True)
    assert strict((out / "dct.json").read_text())["layer"] == "3"  # the old one is back
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(DctError, match="holds no export, and will not be replaced"):
        export(parcel(), "npz", tmp_path / "mine", replace=True)
    assert (tmp_path / "mine/thesis.txt").exists()


def test_the_card_says_what_it_is_and_shows_no_folder_of_this_machine(tmp_path):
    info = {**INFO, "model": str(tmp_path), "prompts": ["a", "b"], "prompts_origin": str(tmp_path / "secret.txt"),
            "loading": {"revision": "abc123"}, "scale": 0.75, "versions": {"torch": "2.9"}}  # fmt: skip
    export(Parcel(directions(), [1.5], ["3"], 2, info=info, kind="llama"), "gguf", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for said in ("llama-cli -m MODEL.gguf --control-vector", "| prompts | 2, secret.txt |", "abc123", "torch 2.9",
                 "## Safety", "Not measured: the run has not been ranked", "2 to 4", "`hidden_states[2]`"):  # fmt: skip
        assert said in card
    assert str(tmp_path) not in card
    assert str(tmp_path).encode() not in (tmp_path / "out/control-vector.gguf").read_bytes()
    assert "base_model" not in card
    export(parcel(), "npz", tmp_path / "hub")
    assert (tmp_path / "hub/README.md").read_text().startswith("---\nbase_model: someone/tiny\n")


def test_what_a_file_says_is_no_markup():
    assert plain("a|b\n# <img src=x> [c](d) `e`") == r"a\|b \# \<img src=x\> \[c\](d) \`e\`"


@pytest.mark.parametrize("name", ["safetensors", "npz"])
def test_the_snippet_of_the_card_works(tmp_path, monkeypatch, model_folder, name):
    lm = dct.load(str(model_folder))
    sent = Parcel(directions(), [1.5], ["3"], 2, info={**INFO, "model": "tiny-llama"}, kind="llama")
    done = export(sent, name, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    Path("tiny-llama").symlink_to(model_folder)
    [snippet] = re.findall("```python\n(.*?)```", (done.folder / "README.md").read_text(), re.DOTALL)
    scope: dict = {}
    exec(snippet, scope)
    if name == "npz":
        assert np.array_equal(scope["found"]["vectors"], sent.vectors.numpy())
        return
    with dct.steer(lm, sent.vectors[0], 2):
        assert float((logits(scope["model"]) - logits(lm.model)).abs().max()) < 1e-5


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_exports_what_steer_adds(fitted, model_folder):  # noqa: F811
    factors = dct.Factors.load(fitted / "factors.safetensors")
    done = as_json("export", "--vector", -17, "--scale", 2, "--out", "there")
    found = load_file("there/vectors.safetensors")["vectors"]
    assert torch.allclose(found[0], -2 * factors.scale * factors.V[17], atol=1e-6)
    assert done["norms"] == [pytest.approx(2 * factors.scale)]
    assert done["files"] == ["README.md", "dct.json", "vectors.safetensors"]
    assert done["layer"] == factors.info["source"] == 1
    said = ok("export", "--top", 2, "--format", "npz").output
    assert "README.md" in said
    [folder] = fitted.glob("export-npz-*")
    ranked = strict((fitted / "rank.json").read_text())["vectors"]
    assert np.load(folder / "vectors.npz")["names"].tolist() == [one["vector"] for one in ranked[:2]]
    card = (folder / "README.md").read_text()
    for told in ("rank 1 of", "damage (KL)", "random, best", "score"):
        assert told in card
    assert str(model_folder.parent) not in card


def test_the_command_aggregates_and_ablates(fitted, model_folder):  # noqa: F811
    factors = dct.Factors.load(fitted / "factors.safetensors")
    ok("export", "-v", 3, "-v", 5, "--aggregate", "mean", "--out", "mean")
    mean = normalize(factors.V[3] + factors.V[5], dim=0) * factors.scale
    assert torch.allclose(load_file("mean/vectors.safetensors")["vectors"][0], mean, atol=1e-6)
    ok("export", "-v", 3, "-v", 5, "--aggregate", "svd", "--out", "svd")
    [svd] = load_file("svd/vectors.safetensors")["vectors"]
    assert float(svd @ (factors.V[3] + factors.V[5])) > 0
    done = as_json("export", "-v", 3, "-v", 5, "--ablate", "--format", "transformers", "--out", "whole")
    assert done["ablate"] is True
    lm = dct.load(str(model_folder))
    with dct.ablate(lm, factors.V[[3, 5]], fold_norms=True):
        wanted = logits(lm.model)
    assert float((logits(AutoModelForCausalLM.from_pretrained("whole")) - wanted).abs().max()) < 2e-5


def test_the_command_refuses_in_one_line(fitted):  # noqa: F811
    for words, code, why in (
        (["--format", "ggml"], 2, "choose easysteer, gguf"),
        (["--format", "gguf"], 1, "fit with --source 2"),
        (["--format", "peft"], 2, "add --ablate"),
        (["--format", "transformers"], 1, "choose gguf or easysteer, or npz"),
        (["--ablate", "--scale", 2], 2, "leave --scale out"),
        (["--save-dtype", "float16"], 2, "leave --save-dtype out"),
        (["--public"], 2, "--push-to-hub"),
        (["--push-to-hub", "nobody"], 2, "OWNER/NAME"),
        (["--scale", 0], 1, "choose another --scale"),
        (["--vector", 99], 1, "out of range"),
    ):
        result = run("export", "--vector", 3, *words, "--out", "out")
        assert result.exit_code == code, result.output
        assert why in result.output
        assert not Path("out").exists()
    ok("export", "--vector", 3, "--out", "out")
    assert "--force" in run("export", "--vector", 3, "--out", "out").output
    ok("export", "--vector", 3, "--out", "out", "--force")


# --- the hub ----------------------------------------------------------------------------------------------------------


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    def _answer(self, content: dict, code: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size).decode()
        self.server.seen.append((self.path, body))
        if self.server.refuses:
            self._answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self._answer({"url": f"http://127.0.0.1:{self.server.server_port}/someone/steered"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        else:
            self._answer(
                {
                    "commitUrl": f"http://127.0.0.1:{self.server.server_port}/someone/steered/commit/1",
                    "commitOid": "1",
                    "success": True,
                }
            )

    def do_GET(self) -> None:
        self._answer({"id": "someone/steered", "sha": "0", "siblings": []})

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.seen, server.refuses = [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the stand-in is no further than this
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_push_uploads_the_folder_to_a_private_repository(tmp_path, hub):
    import base64

    from dct.publishing import push

    export(parcel(), "safetensors", tmp_path / "out")
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    push(tmp_path / "out", "someone/steered", endpoint=endpoint)
    path, body = hub.seen[0]
    assert path == "/api/repos/create"
    asked = json.loads(body)
    assert asked["name"] == "steered"
    assert asked.get("private") is True or asked.get("visibility") == "private"
    [commit] = [body for path, body in hub.seen if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert sorted(sent) == ["README.md", "dct.json", "vectors.safetensors"]
    for name, data in sent.items():
        assert data == (tmp_path / "out" / name).read_bytes()
    hub.refuses = True
    with pytest.raises(DctError, match=r"is written, and could not be pushed to someone/steered: .*hf auth login"):
        push(tmp_path / "out", "someone/steered", endpoint=endpoint)


def test_the_command_pushes_what_it_wrote(fitted, monkeypatch):  # noqa: F811
    pushed = []

    def push(folder, repo, *, public):
        pushed.append((Path(folder).resolve(), repo, public))
        return f"https://hub/{repo}"

    monkeypatch.setattr("dct.publishing.push", push)
    done = as_json("export", "--vector", 3, "--out", "out", "--push-to-hub", "someone/steered", "--public")
    assert pushed == [(Path("out").resolve(), "someone/steered", True)]
    assert done["pushed"] == "https://hub/someone/steered"
