"""Eigenvectors of a spectrum as factors in a run folder of their own, which every command that takes a run takes."""

from pathlib import Path

import torch
from torch.nn.functional import normalize

from dct.derivatives import Derivatives
from dct.factors import Factors
from dct.runs import claimed
from dct.slice import Slice
from dct.spectra import Spectrum

METHOD = "spectrum"
"""What these factors say they were found by."""

LIKE = "quadratic"
"""The method of which their u and alpha are: with orthonormal v_i, K is the identity in K alpha = b."""

OF_THE_FIT = (
    *("iterations", "orthogonalize", "beta", "start", "d_proj", "random_start", "informative", "settled", "batch"),
    *("response", "random_response", "above_random", "of_target", "exploded", "fit_seconds", "seconds", "peak_memory"),
    *("estimate", "compile", "calibration", "lambda", "method_options"),
)
"""What a run says of its own fit, and no other can say."""


def save_eigenvectors(
    slice_: Slice, factors: Factors, found: Spectrum, out: Path, output: str, batch: int | None = None
) -> Path:
    """Writes v_i = q_i, u_i and alpha_i the direction and length of T2(., q_i, q_i) into a folder, at the run's scale.

    They have no sense: (-q)'Q(-q) = q'Qq.

    Raises:
        DctError: the folder cannot be written.
    """
    d = Derivatives(slice_, slice_.dim, batch=batch, dtype=slice_.dtype)
    V = found.vectors.float().cpu()
    caused = d.second(found.vectors).float().cpu()
    info = {key: value for key, value in factors.info.items() if key not in OF_THE_FIT and key != "scale"}
    info |= {"method": METHOD, "signed": False, "factors": len(V), "spectrum_of": output}
    with claimed(out, METHOD) as run:
        run.save_factors(
            Factors(V, normalize(caused, dim=1), caused.norm(dim=1), torch.zeros(0, 3), factors.scale, info)
        )
    return run.folder
