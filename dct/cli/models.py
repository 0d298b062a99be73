"""`dct models`: the aliases, and what a model's config says."""

from typing import Annotated, Any

from dct.aliases import ALIASES, DEMO
from dct.cli.signature import argument
from dct.cli.terminal import Terminal, command, escape
from dct.organism import DEMO_DIR
from dct.settings import OutputSettings, WeightSettings


@command
def models(
    weights: WeightSettings,
    output: OutputSettings,
    name: Annotated[str | None, argument("Alias, folder, GGUF file, adapter or Hugging Face id to look into.")] = None,
) -> None:
    """List the aliases, or say what a model looks like: blocks, width, where its block list is. Loads no weights."""
    terminal = Terminal(output.json, output.quiet)
    if name is None:
        _aliases(terminal)
        return
    from rich.table import Table

    content = _look(terminal, name, weights)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for key, value in content.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        table.add_row(key, f"{value:,}" if whole else escape(str(value)))
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
        "\nAny Hugging Face id, local folder, GGUF file or adapter works too: [bold cyan]dct models NAME[/bold cyan] "
        "looks inside."
    )
    terminal.result({DEMO: DEMO, **ALIASES})


def _look(terminal: Terminal, name: str, weights: WeightSettings) -> dict[str, Any]:
    """What a model is, from its configuration, tokenizer and headers."""
    from dct.model import default_layers
    from dct.opening import opened

    checkpoint, tokenizer, merging = opened(name, tell=terminal.note, **vars(weights))
    checkpoint.verify()
    text = checkpoint.config.get_text_config()
    return {
        "model": checkpoint.where if checkpoint.where != str(DEMO_DIR) else DEMO,
        "type": checkpoint.config.model_type,
        "blocks": checkpoint.depth,
        "block list": checkpoint.layers_path,
        "width": text.hidden_size,
        "vocabulary": text.vocab_size,
        "parameters": checkpoint.parameters,
        "template": "chat" if getattr(tokenizer, "chat_template", None) else "plain",
        "default layers": list(default_layers(checkpoint.depth, name)),
        **checkpoint.origin,
        **({"adapter": str(merging)} if merging is not None else {}),
    }
