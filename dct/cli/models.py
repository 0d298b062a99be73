"""`dct models`: the aliases, and what a model's config says."""

from pathlib import Path
from typing import Annotated, Any

from dct.aliases import ALIASES, DEMO
from dct.cli import options as o
from dct.cli.declare import argument
from dct.cli.terminal import Terminal, command, escape
from dct.organism import DEMO_DIR


@command
def models(
    name: Annotated[str | None, argument(help="Alias, local folder or Hugging Face id to look into.")] = None,
    layers: o.Layers = "",
    revision: o.Revision = None,
    trust_remote_code: o.Trust = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """List the aliases, or say what a model looks like: blocks, width, where its block list is. Loads no weights."""
    terminal = Terminal(as_json, quiet)
    if name is None:
        _aliases(terminal)
        return
    from rich.table import Table

    content = _look(name, layers, revision, trust_remote_code)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for key, value in content.items():
        table.add_row(key, f"{value:,}" if isinstance(value, int) else escape(str(value)))
    terminal.show(table)
    first, last = content["default layers"]
    terminal.summary(
        "ready", [("next", f"[bold cyan]dct fit --model {escape(name)} --s {first} --t {last}[/bold cyan]")]
    )
    terminal.result(content)


def _aliases(terminal: Terminal) -> None:
    from rich.table import Table

    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("alias", style="cyan")
    table.add_column("model")
    shipped = (DEMO_DIR / "model.safetensors").exists()
    table.add_row(DEMO, "ships with the package" if shipped else "not in this installation")
    for alias, model in ALIASES.items():
        table.add_row(alias, model)
    terminal.show(table)
    terminal.show(
        "\nAny Hugging Face id or local folder works too: [bold cyan]dct models NAME[/bold cyan] looks inside."
    )
    terminal.result({DEMO: DEMO, **ALIASES})


def _look(name: str, layers: str, revision: str | None, trust: bool) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dct.loading import hub_answers, loading_error, resolve
    from dct.model import default_layers, find_layers

    where = resolve(name)
    local = not Path(where).is_dir() and not hub_answers(name, where, revision)
    try:
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=trust, local_files_only=local)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    except Exception as error:
        raise loading_error(name, where, error) from error
    path, blocks = find_layers(model, layers)
    text = config.get_text_config()
    return {
        "model": where if where != str(DEMO_DIR) else DEMO,
        "type": config.model_type,
        "blocks": len(blocks),
        "block list": path,
        "width": text.hidden_size,
        "vocabulary": text.vocab_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "default layers": list(default_layers(len(blocks), name)),
    }
