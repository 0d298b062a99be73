"""Every causal language model of transformers, in a tiny random form, against its own forward pass.

    python benchmarks/architectures.py                        # all, about half an hour on two cores
    python benchmarks/architectures.py --only llama,gemma4    # some, with what was found
    python benchmarks/architectures.py --write                # docs/architectures.md from the last results

Each class runs in a process of its own, forked from one that has loaded the libraries. Results go to
benchmarks/results/architectures.json.
"""

import json
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

# Read when the libraries are imported: a fork must not inherit their threads, and nothing is to be asked of the hub.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import torch
import transformers
import typer
from referee.checks import CHECKS, examine
from referee.configs import tiny_model, tiny_tokenizer
from referee.subject import Subject
from referee.table import MARKS, render, summary
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "architectures.json"
TABLE = HERE.parent / "docs" / "architectures.md"

SECONDS, PATIENCE = 120, 900
"""Of processor time for one class, and of time by the clock."""

BYTES = 12 << 30


def entries() -> list[dict[str, Any]]:
    """Every class once with each of its model types: those of the causal mapping, then those for images and text."""
    causal = [(key, name, False) for key, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()]
    vision = [(key, name, True) for key, name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()]
    seen = {(key, name) for key, name, _ in causal}
    vision = [entry for entry in vision if entry[:2] not in seen]
    return [{"type": key, "class": name, "vision": is_vision} for key, name, is_vision in causal + vision]


def examined(entry: dict[str, Any], tokenizer: Any, out: Path) -> None:
    """Builds one model and runs every check; what is known is on disk after each."""
    begun = time.time()
    result = {**entry, "built": False, "checks": {}}

    def keep() -> None:
        result["seconds"] = round(time.time() - begun, 1)
        out.write_text(json.dumps(result))

    try:
        torch.manual_seed(0)
        model = tiny_model(entry["type"], entry["class"])
    except BaseException as error:
        lines = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        result["why"] = f"{type(error).__name__}: {lines[:200]}"
        keep()
        return
    result["built"] = True
    result["parameters"] = sum(p.numel() for p in model.parameters())
    keep()

    def tell(name: str, found: dict[str, Any]) -> None:
        result["checks"][name] = {**found, "at": round(time.time() - begun, 1)}
        keep()

    examine(Subject(model, tokenizer, entry["vision"]), tell)
    result["done"] = True
    keep()


def forked(entry: dict[str, Any], tokenizer: Any, folder: Path) -> tuple[int, Path, float, dict[str, Any]]:
    out = folder / f"{entry['class']}-{entry['type'].replace('/', '_')}.json"
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            examined(entry, tokenizer, out)
        finally:
            os._exit(0)
    return pid, out, time.time(), entry


def sweep(chosen: list[dict[str, Any]], jobs: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """Hands `keep` the result of every entry."""
    import tempfile

    tokenizer = tiny_tokenizer()
    running, waiting = [], list(chosen)
    with tempfile.TemporaryDirectory(prefix="architectures-") as folder:
        os.environ["TMPDIR"] = folder
        tempfile.tempdir = folder
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(forked(waiting.pop(0), tokenizer, Path(folder)))
            time.sleep(0.05)
            for one in list(running):
                pid, out, begun, entry = one
                done, status = os.waitpid(pid, os.WNOHANG)
                late = time.time() - begun > PATIENCE
                if not done and late:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                if done or late:
                    running.remove(one)
                    result = json.loads(out.read_text()) if out.exists() else {**entry, "built": False, "checks": {}}
                    if not result["built"]:
                        result.setdefault("why", "died while it was built")
                    elif not result.get("done"):
                        missing = next((name for name in CHECKS if name not in result["checks"]), "readout")
                        out_of_time = late or os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
                        why = f"took more than {SECONDS} s" if out_of_time else f"died (status {status})"
                        result["checks"][missing] = {"verdict": "fails", "note": why}
                    keep(result)
                    show(result)


def show(result: dict[str, Any]) -> None:
    name = f"{result['type']} {result['class']}"
    if not result["built"]:
        print(f"{name}: not built: {result['why']}", flush=True)
        return
    verdicts = " ".join(f"{k}={MARKS[v['verdict']]}" for k, v in result["checks"].items() if v["verdict"] != "ok")
    print(f"{name} ({result['seconds']} s): {verdicts or 'all ok'}", flush=True)
    for check, found in result["checks"].items():
        if found["verdict"] in ("fails", "wrong", "refused"):
            print(f"    {check}: {found['verdict']}: {found['note']}", flush=True)


def main(
    only: Annotated[str, typer.Option(help="Model types or classes, separated by commas.")] = "",
    jobs: Annotated[int, typer.Option()] = 2,
    out: Annotated[Path, typer.Option()] = RESULTS,
    go_on: Annotated[bool, typer.Option("--go-on", help="Only what has no result yet.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Render the table of docs from the results.")] = False,
) -> None:
    """Run the sweep, or render its table."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    if write:
        TABLE.write_text(render(json.loads(out.read_text())))
        return
    names = {name for name in only.split(",") if name}
    chosen = [e for e in entries() if not names or {e["type"], e["class"]} & names]
    if not chosen:
        sys.exit(f"no such model type: {only}")
    done = {_key(r): r for r in json.loads(out.read_text())["results"]} if out.exists() else {}
    if go_on:
        chosen = [e for e in chosen if _key(e) not in done]
    order = [_key(e) for e in entries()]

    def keep(result: dict[str, Any]) -> None:
        done[_key(result)] = result
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        content = {"versions": versions, "results": [done[key] for key in order if key in done]}
        out.parent.mkdir(exist_ok=True)
        beside = out.with_suffix(".part")
        beside.write_text(json.dumps(content, indent=1) + "\n")
        beside.replace(out)

    sweep(chosen, jobs, keep)
    print(summary(list(done.values())))


def _key(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["type"], entry["class"]


if __name__ == "__main__":
    typer.run(main)
