"""How fast an exponential fit is, beside a textbook one: seconds, useful FLOP/s, share of the matrix rate, memory.

    python benchmarks/speed.py cpu                       # width 512, slice 2 to 8 of 12, 64 factors, 3 iterations
    python benchmarks/speed.py 7b                        # the post's setting on a 7B-shaped model; wants a GPU
    python benchmarks/speed.py 32b --dtype bfloat16
    python benchmarks/speed.py cpu --reference FILE      # the published research script too, from a copy of your own

Models have random weights, made on the device. Every run is a process of its own, contestants take turns, and the
median of the repeats counts. CPU seconds are given beside seconds: on a shared machine they are the steadier measure.

`baseline` is what the post describes, written here: float32, prompts padded to one length, vmap over factors, one
value and gradient per factor, iteration and prompt through the model, with a hook that adds the vector at s and one
that reads at t; it stops at t and has no head. Everybody does the same: the projected start from 32 output directions,
the iterations, the strengths. The factors of `dct` and of the baseline must agree; what `dct` adds, the response to 30
random directions, is timed with it; the passes that it saves, for the outputs before the first iteration and for the
unsteered model under each of the 32 directions, the baseline runs.

Useful work is what the mathematics asks for, two operations per parameter and token forwards and two backwards: every
matrix of the blocks s..t-2, of block t-1 keys and values; the rest of that block at the target tokens alone; the tokens
of all prompts without padding and with their common prefix once. Attention itself, norms and the head count as nothing.
The share is that, per second, of the rate at which the device multiplies large square matrices of the same type.

With `--compile` the seconds until the first fit has run are said too; compilation is in them and not in the fit's.

Memory is the peak beyond what the process held with the model in it, before anything ran; `dct` has one heap for all
threads, as its command line does.
"""

import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from dct.memory import one_heap

POSITIONS, D_PROJ, SEED = 3, 32, 0


@dataclass(frozen=True)
class Workload:
    """Shape of a model and of a fit."""

    width: int
    blocks: int
    mlp: int
    heads: int
    key_heads: int
    vocabulary: int
    source: int
    target: int
    lengths: tuple[int, ...]
    prefix: int
    factors: int
    iterations: int
    scale: float
    """R, in square roots of the width: the streams of a larger random model are longer."""
    baseline_factors: int
    """What the baseline is run with; its time is scaled up to `factors`, and that is said."""

    @property
    def ids(self) -> list[list[int]]:
        """Prompts that share their first `prefix` tokens and no more."""
        g = torch.Generator().manual_seed(SEED)
        prefix = torch.randint(10, self.vocabulary, (self.prefix,), generator=g).tolist()
        rest = [torch.randint(10, self.vocabulary, (n - self.prefix - 1,), generator=g).tolist() for n in self.lengths]
        return [[*prefix, k, *row] for k, row in enumerate(rest, start=1)]

    @property
    def keys(self) -> int:
        """Parameters of a block's key and value products."""
        return 2 * self.width * self.key_heads * (self.width // self.heads)

    @property
    def block(self) -> int:
        """Parameters of all products of a block."""
        return self.keys + 2 * self.width**2 + 3 * self.width * self.mlp

    def weights(self, dtype: str) -> int:
        """Bytes of the blocks of the slice, all of the model that `dct fit` keeps on the device."""
        return (self.target - self.source) * self.block * getattr(torch, dtype).itemsize

    def useful(self, factors: int) -> float:
        """Operations of a fit, as the head of this file counts them."""
        keys, block = self.keys, self.block
        tokens = self.prefix + sum(n - self.prefix for n in self.lengths)
        one = (self.target - self.source - 1) * block * tokens + keys * tokens
        one += (block - keys) * POSITIONS * len(self.lengths)
        forwards = 1 + factors * (self.iterations + 1)
        backwards = D_PROJ + factors * self.iterations
        return 2.0 * one * (forwards + backwards)


WORKLOADS = {
    "cpu": Workload(512, 12, 1408, 8, 8, 2048, 2, 8, (30, 32, 34, 36, 38, 40, 34, 36), 14, 64, 3, 0.02, 64),
    "7b": Workload(4096, 32, 11008, 32, 32, 151936, 10, 20, (32,) * 8, 14, 512, 10, 0.2, 32),
    "32b": Workload(5120, 64, 27392, 40, 8, 152064, 20, 40, (32,) * 8, 14, 512, 10, 0.2, 8),
}
FITS = ("dct", "baseline", "reference")


# --- the contestants: each makes its model, gives back the fit to be timed --------------------------------------------

Fit = Callable[[int, int], Tensor | None]
"""(factors, iterations) -> V, rows, or None where it cannot be compared."""


def random_model(w: Workload, device: str, dtype: torch.dtype) -> Any:
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=w.vocabulary,
        hidden_size=w.width,
        intermediate_size=w.mlp,
        num_hidden_layers=w.blocks,
        num_attention_heads=w.heads,
        num_key_value_heads=w.key_heads,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )
    torch.manual_seed(SEED)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


class NoTokenizer:
    """Prompts are given as token ids."""

    chat_template = None

    def decode(self, *_: Any, **__: Any) -> str:
        return ""


def dct_fit(
    w: Workload, device: str, dtype: torch.dtype, scale: float, batch: int | None, compiled: bool = False
) -> Fit:
    import dct

    lm = dct.LanguageModel(random_model(w, device, dtype), NoTokenizer(), "random")
    slice_ = dct.Slice(lm, w.ids, w.source, w.target, POSITIONS)
    expected = w.prefix + sum(n - w.prefix for n in w.lengths)
    assert slice_.tokens == expected, (slice_.tokens, expected)
    if compiled:
        slice_.compile()

    def fit(factors: int, iterations: int) -> Tensor:
        found = dct.fit(
            slice_,
            slice_.dim,
            factors=factors,
            scale=scale,
            iterations=iterations,
            orthogonalize="qr",
            seed=SEED,
            batch=batch,
        )
        return found.V

    return fit


def baseline_fit(w: Workload, device: str, dtype: torch.dtype, scale: float, batch: int | None) -> Fit:
    model = random_model(w, device, dtype).model
    model.layers = model.layers[: w.target]
    longest = max(w.lengths)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in w.ids], device=device)
    # Padded on the right: under a causal mask no token of a prompt sees its padding, so no mask is needed.
    last = torch.tensor([len(row) for row in w.ids], device=device)[:, None] + torch.arange(
        -POSITIONS, 0, device=device
    )
    reached: list[Tensor] = []

    def run(theta: Tensor, prompt: slice = slice(None)) -> Tensor:
        def add(_: Any, args: Any) -> Any:
            return (args[0] + theta, *args[1:])

        def read(_: Any, args: Any, output: Any) -> None:
            reached.append(output)

        handles = [
            model.layers[w.source].register_forward_pre_hook(add),
            model.layers[w.target - 1].register_forward_hook(read),
        ]
        try:
            model(ids[prompt], use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        stream = reached.pop()
        return torch.take_along_dim(stream, last[prompt][..., None], dim=1)

    with torch.no_grad():
        rest = run(torch.zeros(w.width, device=device, dtype=dtype))

    def delta(theta: Tensor, prompt: slice) -> Tensor:
        return (run(theta, prompt) - rest[prompt]).mean((0, 1))

    def mean_over_prompts(f: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> list[Tensor]:
        """f for all factors, one prompt after another, as the published script does by default."""
        sums: list[Tensor] = []
        for k in range(len(ids)):
            got = torch.vmap(lambda *row: f(slice(k, k + 1), *row), chunk_size=batch or 16)(*rows)  # noqa: B023
            sums = [a + b.detach() for a, b in zip(sums, got, strict=True)] if sums else [x.detach() for x in got]
        return [x / len(ids) for x in sums]

    def value(prompt: slice, theta: Tensor) -> tuple[Tensor]:
        return (delta(theta, prompt),)

    def value_and_gradient(prompt: slice, theta: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        out, pull = torch.func.vjp(lambda x: delta(x, prompt), theta)
        return out, pull(u)[0]

    def directions(count: int, seed: int) -> Tensor:
        drawn = torch.randn(count, w.width, generator=torch.Generator().manual_seed(seed))
        return normalize(drawn, dim=1).to(device, dtype)

    def orthogonalised(V: Tensor) -> Tensor:
        Q, R = torch.linalg.qr(V.T)
        return (Q * R.diagonal().sign()).T

    def fit(factors: int, iterations: int) -> Tensor:
        W = directions(D_PROJ, SEED)
        _, projected = mean_over_prompts(value_and_gradient, torch.zeros_like(W), W)
        V = directions(factors, SEED + 1)
        informative = torch.linalg.svd(projected, full_matrices=False).Vh[:factors]
        V[: len(informative)] = informative
        V = orthogonalised(V)
        with torch.no_grad():
            [response] = mean_over_prompts(value, scale * V)
        U = normalize(response, dim=1)
        for _ in range(iterations):
            V = orthogonalised(V)
            response, gradient = mean_over_prompts(value_and_gradient, scale * V, U)
            U, V = normalize(response, dim=1), normalize(gradient, dim=1)
        with torch.no_grad():
            [response] = mean_over_prompts(value, scale * V)
        U = normalize(response, dim=1)
        K = (U @ U.T) * torch.expm1(V @ V.T)
        torch.linalg.solve(K, (U * response).sum(1))
        return V.float().cpu()

    return fit


def reference_fit(w: Workload, device: str, dtype: torch.dtype, scale: float, batch: int | None, script: str) -> Fit:
    """The published script, loaded from a file; nothing of it is part of this project."""
    spec = importlib.util.spec_from_file_location("published_dct", script)
    assert spec is not None
    assert spec.loader is not None
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    model = random_model(w, device, dtype)
    longest = max(w.lengths)
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in w.ids], device=device)
    with torch.no_grad():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    sliced = published.SlicedModel(model, w.source, w.target, layers_name="model.layers")
    with torch.no_grad():
        X = states[w.source]
        Y = sliced(X)
    delta = published.DeltaActivations(sliced, target_position_indices=slice(-POSITIONS, None))

    def fit(factors: int, iterations: int) -> None:
        transcoder = published.ExponentialDCT(num_factors=factors)
        transcoder.fit(
            delta,
            X,
            Y,
            batch_size=1,
            factor_batch_size=batch or 16,
            init="jacobian",
            d_proj=D_PROJ,
            input_scale=scale,
            max_iters=iterations,
        )
        transcoder.rank(delta, X, Y, factor_batch_size=batch or 16)  # the strengths

    return fit


# --- one run, in a process of its own ---------------------------------------------------------------------------------


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def resident(field: str) -> int:
    """This process's VmRSS or VmHWM (its peak), bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def run_alone(job: dict[str, Any]) -> dict[str, Any]:
    """Times one fit and its memory beyond what the model takes."""
    w, device, dtype = Workload(**job["workload"]), job["device"], getattr(torch, job["dtype"])
    torch.set_float32_matmul_precision("high" if job["tf32"] else "highest")
    if job["fit"] == "dct":
        one_heap()
    make: dict[str, Callable[..., Fit]] = {"dct": dct_fit, "baseline": baseline_fit, "reference": reference_fit}
    extra = {"reference": [job["reference"]], "dct": [job["compile"]]}.get(job["fit"], [])
    made = time.perf_counter()
    fit = make[job["fit"]](w, device, dtype, job["scale"], job["batch"], *extra)
    matrix_rate(device, dtype)  # libraries are loaded
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        if Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    fit(min(4, job["factors"]), 1)  # kernels are chosen and loaded, allocators are warm
    synchronise(device)
    ready = time.perf_counter() - made
    began, cpu_began = time.perf_counter(), time.process_time()
    V = fit(job["factors"], w.iterations)
    synchronise(device)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    if V is not None:
        torch.save(V, job["save"])
    rate = matrix_rate(device, dtype)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "ready": ready,
        "before": before,
        "peak": peak,
        "rate": rate,
        "machine": machine(device),
    }


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of large square matrix products, the best of several; on a GPU of several in a row."""
    n, row = (8192, 10) if device == "cuda" else (1536, 1)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        synchronise(device)
        began = time.perf_counter()
        for _ in range(row):
            a @ b
        synchronise(device)
        best = max(best, 2 * row * n**3 / (time.perf_counter() - began))
    return best


def machine(device: str) -> dict[str, Any]:
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu)
    found = {"cpu": cpu, "threads": torch.get_num_threads(), "torch": torch.__version__, "device": device}
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def in_own_process(job: dict[str, Any], packages: str | None) -> dict[str, Any]:
    import os

    env = dict(os.environ)
    if packages and job["fit"] == "reference":
        env["PYTHONPATH"] = packages
    command = [sys.executable, __file__, "--alone", json.dumps(job)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise typer.Exit(_fail(f"{job['fit']} failed: {last}"))
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _fail(message: str) -> int:
    Console(stderr=True).print(f"[red]{message}[/red]")
    return 1


# --- the comparison ---------------------------------------------------------------------------------------------------


def main(
    workload: Annotated[str, typer.Argument(help=", ".join(WORKLOADS))] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the blocks for `dct`; the others run in float32.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda; auto takes the GPU.")] = "auto",
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    factors: Annotated[int | None, typer.Option(help="Instead of the workload's own number.")] = None,
    batch: Annotated[int | None, typer.Option(help="Vectors in a pass for `dct`.")] = None,
    baseline_batch: Annotated[int, typer.Option(help="Vectors in a pass for the others.")] = 16,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let float32 products use TF32 on a GPU.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="`dct` compiles its blocks.")] = False,
    only: Annotated[str, typer.Option(help="One contestant alone: dct, baseline or reference.")] = "",
    reference: Annotated[Path | None, typer.Option(help="The published script's dct.py, to be timed too.")] = None,
    reference_packages: Annotated[Path | None, typer.Option(help="Folder with the packages it needs.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON; else under benchmarks/results.")] = None,
    alone: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time an exponential fit beside a textbook one."""
    if alone:
        print(json.dumps(run_alone(json.loads(alone))))
        return
    console = Console()
    w = WORKLOADS[workload]
    if factors is not None:
        w = replace(w, factors=factors, baseline_factors=min(factors, w.baseline_factors))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    contestants = [f for f in FITS if (only in ("", f)) and (f != "reference" or reference is not None)]
    types = {f: dtype if f == "dct" else "float32" for f in contestants}
    runs: dict[str, list[dict[str, Any]]] = {f: [] for f in contestants}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(repeats):
            for f in contestants:
                job = {
                    "fit": f,
                    "workload": asdict(w),
                    "device": device,
                    "dtype": types[f],
                    "tf32": tf32,
                    "compile": compiled,
                    "scale": float(w.width) ** 0.5 * w.scale,
                    "batch": batch if f == "dct" else baseline_batch,
                    "factors": w.factors if f == "dct" else w.baseline_factors,
                    "reference": str(reference),
                    "save": f"{scratch}/{f}.pt",
                }
                runs[f].append(in_own_process(job, str(reference_packages) if reference_packages else None))
                console.print(f"[dim]{f}: {runs[f][-1]['seconds']:.2f} s[/dim]")
        agreement = None
        if {"dct", "baseline"} <= set(contestants) and w.baseline_factors == w.factors:
            ours, theirs = (torch.load(f"{scratch}/{f}.pt") for f in ("dct", "baseline"))
            # The rows of `dct` are in the order of their responses, those of the others in that of their start.
            agreement = float((ours @ theirs.T).amax(1).mean())
    rates = {name: max(r["rate"] for f in contestants if types[f] == name for r in runs[f]) for name in types.values()}
    results = {f: _summary(w, f, runs[f], types[f], rates[types[f]]) for f in contestants}
    where = runs[contestants[0]][0]["machine"]
    _show(console, workload, w, results, agreement, where, rates, tf32, compiled)
    record = {
        "workload": {"name": workload, **asdict(w)},
        "machine": where,
        "matrix_rate": rates,
        "tf32": tf32,
        "compile": compiled,
        "agreement": agreement,
        "results": results,
    }
    path = out or Path(__file__).parent / "results" / f"{workload}-{device}-{dtype}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"saved {path}")


def _summary(w: Workload, f: str, runs: list[dict[str, Any]], dtype: str, rate: float) -> dict[str, Any]:
    factors = w.factors if f == "dct" else w.baseline_factors
    measured = statistics.median(run["seconds"] for run in runs)
    # All of a fit but the 32 projected directions is proportional to its factors.
    useful = w.useful(factors)
    seconds = measured * w.useful(w.factors) / useful
    return {
        "dtype": dtype,
        "factors_run": factors,
        "seconds": seconds,
        "runs": [run["seconds"] for run in runs],
        "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs) * seconds / measured,
        "cpu_runs": [run["cpu_seconds"] for run in runs],
        "rates": [run["rate"] for run in runs],
        "ready": statistics.median(run["ready"] for run in runs),
        "useful_flops": w.useful(w.factors),
        "flops_per_second": useful / measured,
        "share": useful / measured / rate,
        "before": statistics.median(run["before"] for run in runs),
        "slice_weights": w.weights(dtype),
        "peak_beyond_weights": statistics.median(run["peak"] - run["before"] for run in runs),
    }


def _show(
    console: Console,
    name: str,
    w: Workload,
    results: dict[str, dict[str, Any]],
    agreement: float | None,
    where: dict[str, Any],
    rates: dict[str, float],
    tf32: bool,
    compiled: bool,
) -> None:
    title = f"{name}: {w.factors} factors, {w.iterations} iterations, slice {w.source} to {w.target}, width {w.width}"
    caption = "GFLOP/s: useful ones, and their share of the matrix rate; MiB: at the peak, beyond the model's weights"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("fit", "type", "seconds", "ratio", "CPU s", "ratio", "GFLOP/s", "share", "MiB"):
        table.add_column(heading, justify="left" if heading == "fit" else "right")
    ours = results.get("dct")
    for f, r in results.items():
        table.add_row(
            f,
            r["dtype"],
            f"{r['seconds']:.2f}",
            f"{r['seconds'] / ours['seconds']:.2f}" if ours else "",
            f"{r['cpu_seconds']:.2f}",
            f"{r['cpu_seconds'] / ours['cpu_seconds']:.2f}" if ours else "",
            f"{r['flops_per_second'] / 1e9:,.1f}",
            f"{r['share']:.0%}",
            f"{r['peak_beyond_weights'] / 2**20:,.0f}",
        )
    console.print(table)
    for f, r in results.items():
        if r["factors_run"] != w.factors:
            console.print(f"{f} ran with {r['factors_run']} factors; its seconds are scaled up")
    if ours:
        weights, beyond = ours["slice_weights"], ours["peak_beyond_weights"]
        console.print(
            f"blocks {w.source} to {w.target - 1} take {weights / 1e9:.2f} GB in {ours['dtype']}: `dct fit`, which "
            f"loads no others, peaks at {(weights + beyond) / 1e9:.2f} GB of tensors"
        )
    if compiled and ours:
        console.print(f"compiled; model made, compiled and warm after {ours['ready']:.0f} s")
    console.print(f"{where}; TF32 {'on' if tf32 else 'off'}")
    console.print("matrix rate: " + ", ".join(f"{k} {v / 1e9:,.0f} GFLOP/s" for k, v in rates.items()))
    if agreement is not None:
        console.print(f"mean cosine of dct's factors with the nearest of the baseline's: {agreement:.6f}")


if __name__ == "__main__":
    typer.run(main)
