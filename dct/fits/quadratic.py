"""`quadratic`: orthogonalised alternating least squares (ALS) on the second derivative of the map at 0.

    T2(., theta, theta) ~ sum_l alpha_l <v_l, theta>^2 u_l      T2[i, j, k] = d^2 f_i / d theta_j d theta_k at 0

V. Sharan and G. Valiant, "Orthogonalized ALS: a theoretically principled tensor decomposition algorithm for practical
use" (2017), in the symmetric form of A. Mack and A. Turner, "Deep causal transcoding" (2024). T2 is never formed.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.fits.shared.iteration import OrthogonalisedIteration
from dct.job import Job


class Quadratic(OrthogonalisedIteration):
    name = "quadratic"
    about = "orthogonalised alternating least squares on the second derivative at 0"
    signed = False  # <v, theta>^2 = <-v, theta>^2
    orthogonalize = "qr"
    kernel = "quadratic"

    def update(
        self, job: Job, V: Float[Tensor, "m d"], U: Float[Tensor, "m d_out"] | None
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d_out"]]:
        """u_l <- T2(., v_l, v_l), then v_l <- T2(u_l, v_l, .) with the new u_l."""
        seconds = job.d.second(V)
        return job.d.second_transposed(normalize(seconds, dim=1), V), seconds

    def caused(self, job: Job, V: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d_out"]:
        """T2(., v_l, v_l)."""
        return job.d.second(V)

    def passes(self, updates: int, ends: int) -> dict[str, int]:
        """T2(., v, v) for every update and end, T2(u, v, .) for every update."""
        return {"second": updates + ends, "second_transposed": updates}
