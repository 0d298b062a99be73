"""`linear`: the singular value decomposition of the whole Jacobian J of the map at 0.

    f(theta) ~ J theta = sum_l s_l <v_l, theta> u_l

A. Mack and A. Turner, "Deep causal transcoding" (2024), the transcoder with sigma(x) = x.
"""

from jaxtyping import Float
from torch import Tensor

from dct.fits.shared.singular import jacobian_svd
from dct.job import Job, Learned
from dct.method import Method
from dct.settings import FitSettings


class Linear(Method):
    name = "linear"
    about = "singular vectors of the whole Jacobian at 0"
    signed = False  # s <v, theta> u = s <-v, theta> (-u)
    kernel = "linear"

    def work(self, settings: FitSettings, dim: int, dim_out: int, done: int | None = None) -> dict[str, int]:
        """min(d, d_out) rows: J from the side that has fewer."""
        return {"vjp": dim_out} if dim_out <= dim else {"jvp": dim}

    def caused(self, job: Job, V: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d_out"]:
        """J v_l."""
        return job.d.jvp(V)

    def fit(self, job: Job) -> Learned:
        """J = U diag(s) V': v_l and u_l are its singular vectors, alpha_l = s_l."""
        return jacobian_svd(job)
