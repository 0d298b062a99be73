"""`linear-projected`: singular vectors of W J for a few random output directions W, the post's cheap linear fit.

    W J = (left) diag(s) V      u_l = unit J v_l

A. Mack and A. Turner, "Deep causal transcoding" (2024). Takes `d_proj` passes back and as many forth.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.fits.shared.singular import informative
from dct.fits.shared.starts import projected_directions
from dct.fits.shared.strengths import solved
from dct.job import Job, Learned
from dct.method import Method, sizes
from dct.settings import FitSettings


class LinearProjected(Method):
    name = "linear-projected"
    about = "singular vectors of the Jacobian seen from a few random output directions"
    signed = False
    kernel = "linear"

    def work(self, settings: FitSettings, dim: int, dim_out: int, done: int | None = None) -> dict[str, int]:
        """`d_proj` rows for W J, and one for each vector that is pushed forward."""
        return {"vjp": settings.d_proj, "jvp": min(sizes(settings)[0], settings.d_proj, dim)}

    def caused(self, job: Job, V: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d_out"]:
        """J v_l."""
        return job.d.jvp(V)

    def fit(self, job: Job) -> Learned:
        """v_l: right singular vectors of W J, shape (d_proj, d); u_l = unit J v_l; alpha from K alpha = b."""
        directions, S = projected_directions(job)
        kept = informative(S, job.d.dim, job.m)
        job.info |= {"d_proj": job.settings.d_proj, "informative": kept}
        V = directions[:kept]
        job.begin("responses", rows=kept)
        pushed = job.d.jvp(V)
        U = normalize(pushed, dim=1)
        # u_l = unit J v_l, b_l = <u_l, J v_l>
        return solved("linear", V, U, (U * pushed).sum(1))
