"""A control vector in GGUF, as llama.cpp reads it: `direction.L`, one-dimensional, float32, added to block L's output.

What enters block s is what block s - 1 puts out, so a vector that was fitted at layer s is `direction.{s-1}`.
"""

import importlib.util
from pathlib import Path

import numpy as np

from dct.errors import DctError
from dct.exporting import Parcel

OTHERS = "safetensors and npz hold a vector of any layer"


def check_package() -> None:
    """Raises:
    DctError: gguf is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise DctError("writing GGUF takes gguf: pip install 'deep-causal-transcoders[gguf]'")


def check_layer(parcel: Parcel, least: int, who: str) -> None:
    """Refuses a layer that a program cannot steer at.

    Raises:
        DctError: it lies below `least`.
    """
    if parcel.layer >= least:
        return
    more = ", repeng and easysteer one of layer 1" if parcel.layer == 1 else ""
    raise DctError(
        f"{who} adds to what a block puts out, from block {least - 1} on, and these vectors belong to the input of "
        f"block {parcel.layer}: fit with `source` {least} or higher; or choose another format: {OTHERS}{more}"
    )


def write_control(path: Path, parcel: Parcel) -> None:
    """Writes the file: R in the tensor, so that strength 1 is the calibrated one."""
    import gguf

    [vector] = parcel.vectors
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", parcel.kind or "unknown")
    writer.add_uint32("controlvector.layer_count", 1)
    for name, value in parcel.about().items():
        writer.add_string(f"controlvector.dct.{name}", value)
    values = np.ascontiguousarray(vector.numpy(), dtype=np.float32)
    writer.add_tensor(f"direction.{parcel.layer - 1}", values)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def hint_remarks(parcel: Parcel) -> tuple[str, ...]:
    """What to say where the model's type is not known."""
    if parcel.kind:
        return ()
    return ("the model's type is not known, so the file's model_hint is `unknown`: llama.cpp does not read it",)
