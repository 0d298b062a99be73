"""Other libraries' bars, warnings and logs: what matters of them, a command says itself, in one line."""

import os
import sys

ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "critical",
    "DATASETS_VERBOSITY": "critical",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "critical",
}
"""What the libraries read when they are imported; a user's own setting is left to rule."""

LOGGERS = ("accelerate", "asyncio", "datasets", "filelock", "gguf", "httpx", "huggingface_hub", "peft", "torch")
"""Loggers that are quiet only when told so."""


def hush_libraries() -> None:
    """Keeps every other library from writing to the terminal, in this process and those that it starts.

    Called once, where a command begins: before the libraries are imported, and again over what a test or a notebook
    has imported already.
    """
    import logging
    import warnings

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:  # -W and PYTHONWARNINGS are left to rule
        warnings.simplefilter("ignore")
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity(logging.CRITICAL)
        transformers_logging.disable_progress_bar()
