"""Transformers without its bars and warnings, where the program says itself what is to be said."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from dct import compat


@contextmanager
def hushed() -> Iterator[None]:
    """Without the libraries' bars, and transformers' list of the weights that a part leaves out."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with compat.silent_unpacking():
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
