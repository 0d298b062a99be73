"""Short names for models. Pure data: knows no library."""

ALIASES: dict[str, str] = {
    "deepseek-math": "deepseek-ai/deepseek-math-7b-rl",
    "gemma": "google/gemma-2-9b-it",
    "gemma-2b": "google/gemma-2-2b-it",
    "gemma-3": "google/gemma-3-1b-it",
    "gpt2": "openai-community/gpt2",
    "llama": "meta-llama/Llama-3.1-8B-Instruct",
    "llama-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.2",
    "olmo": "allenai/OLMo-2-1124-7B-Instruct",
    "phi": "microsoft/Phi-3-mini-4k-instruct",
    "pythia": "EleutherAI/pythia-1.4b",
    "qwen": "Qwen/Qwen1.5-7B-Chat",
    "qwen-1.8b": "Qwen/Qwen1.5-1.8B-Chat",
    "qwen-32b": "Qwen/Qwen1.5-32B-Chat",
    "qwen-3": "Qwen/Qwen3-8B",
    "smollm": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
}
"""Alias -> Hugging Face id. `demo`, the model that ships with the package, is not on the hub and not in here."""

DEMO = "demo"

LAYERS: dict[str, tuple[int, int]] = {DEMO: (0, 8)}
"""Model -> source and target where the rule of thumb does not serve. What enters the demo's first block passes through
its whole computation; a vector that is added later reaches the target by the skip path, hardly larger than it left."""
