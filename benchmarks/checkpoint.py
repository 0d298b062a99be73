"""Writes a checkpoint of a given shape with random weights, shard by shard, never holding more than one shard.

    python benchmarks/checkpoint.py DIR            # 7B: 32 blocks, width 4096, MLP 11008, vocabulary 151,936, 15.4 GB
    python benchmarks/checkpoint.py DIR --shape mid

The shapes are Qwen2's, the weights are drawn from N(0, 0.02^2), the matrices that write into the residual stream from
N(0, 0.02^2 / 2 blocks), the tokenizer and the chat template are the demo model's. What a program reads, how long it
takes and how much memory it needs does not depend on the numbers; what it finds in them means nothing.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from dct.organism import DEMO_DIR

SHAPES = {
    "7b": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
    "mid": {"num_hidden_layers": 12, "hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8},
}
VOCABULARY = 151_936
SHARD = 2_000_000_000
"""Bytes of a shard at most."""

WRITERS = ("o_proj.weight", "down_proj.weight")


def drawn(name: str, shape: torch.Size, blocks: int, generator: torch.Generator) -> torch.Tensor:
    """A parameter's random value: gains are one, biases zero, matrices normal."""
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    deviation = 0.02 / math.sqrt(2 * blocks) if name.endswith(WRITERS) else 0.02
    # A large matrix is one drawn block repeated, each copy turned a little further: drawing 8e9 normals takes minutes.
    pool = torch.randn(min(math.prod(shape), 1 << 22), generator=generator).mul_(deviation).bfloat16()
    copies = -(-math.prod(shape) // len(pool))
    turns = torch.randint(len(pool), (copies,), generator=generator).tolist()
    return torch.cat([pool.roll(k) for k in turns])[: math.prod(shape)].reshape(shape)


def write(folder: Path, shape: str) -> None:
    config = Qwen2Config(
        **SHAPES[shape], num_key_value_heads=SHAPES[shape]["num_attention_heads"], vocab_size=VOCABULARY,
        max_position_embeddings=32768, tie_word_embeddings=False, dtype="bfloat16",
        architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in shapes.items():
        if shards[-1] and filled + 2 * math.prod(size) > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += 2 * math.prod(size)
    generator = torch.Generator().manual_seed(0)
    index = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {n: drawn(n, shapes[n], config.num_hidden_layers, generator) for n in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
        print(f"{file}: {len(names)} tensors", flush=True)
    total = 2 * sum(math.prod(size) for size in shapes.values())
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=1))
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO_DIR).save_pretrained(folder)
    AutoConfig.from_pretrained(folder)
    print(f"{folder}: {total / 1e9:.1f} GB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    options = parser.parse_args()
    write(options.folder, options.shape)
