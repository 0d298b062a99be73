"""`cpe`: causal perturbative elicitation, soft-orthogonalised gradient iteration (SOGI) on perturbations of any kind.

    maximise  sum_l alpha_l <u_l, f(R v_l)> - sum_lk alpha_l alpha_k <u_l, u_k> (exp cos(v_l, v_k) - 1)

A. Mack, N. Panickssery and A. Turner, "Mechanistically Eliciting Latent Behaviors in Language Models" (2026). What v
is, the map says: of a `BandSlice` rank-1 changes of attention outputs, which this is for; of any other a vector.

The push is ours. The published loop subtracts a weighted mean of all phi at a temperature that makes hardly any
difference between near and far ones, before blocks get unit norm; here blocks have unit norm first, and every change
moves away from those that are like it as a change of the model (`Perturbation.cosines`), by the steps of `repelled`.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from dct.errors import NonFiniteError, UsageError
from dct.fits.shared.iteration import OrthogonalisedIteration, mixed
from dct.job import Job, Learned
from dct.settings import FitSettings


class Cpe(OrthogonalisedIteration):
    """Starts from random rows: a rank-1 change is a product, of which nothing is seen at 0."""

    name = "cpe"
    about = "rank-1 changes of the attention outputs of a band of blocks"
    needs_scale = False
    rank_one = True
    options = {"eta": 0.5}  # noqa: RUF012 (declared as a ClassVar by Method)

    def check(self, settings: FitSettings, dim: int) -> None:
        """Rows are pushed apart by what they do, which `qr` does not know."""
        if settings.orthogonalize == "qr":
            raise UsageError(
                "cpe's changes are compared as matrices, which qr cannot do: pass `orthogonalize` soft or none",
                argument="orthogonalize",
            )
        super().check(settings, dim)

    def gains(self, work: Mapping[str, int]) -> bool:
        """Compiled blocks cannot be changed row by row."""
        return False

    def work(self, settings: FitSettings, dim: int, dim_out: int, done: int | None = None) -> dict[str, int]:
        """m rows an iteration that is left, and the final responses."""
        return super().work(settings.changed(start="random"), dim, dim_out, done)

    def fit(self, job: Job) -> Learned:
        """From a random start, whatever the settings say."""
        job.settings = job.settings.changed(start="random")
        return super().fit(job)

    def update(
        self, job: Job, V: Float[Tensor, "m d"], U: Float[Tensor, "m d_out"] | None
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d_out"]]:
        """In one pass, with the old u (at first with the new one):

        v_l <- gradient of <u_l, f> by the parts of v_l, R held      u_l <- f(R v_l)
        """
        value, gradient = job.d.value_and_gradient(job.scale * V, U)
        if not bool(value.norm(dim=1).isfinite().all()):
            raise NonFiniteError("the responses are too large for their norms: lower `scale`")
        return job.space.by_parts(gradient, V), value

    def next(
        self, job: Job, V: Float[Tensor, "m d"], pulled: Float[Tensor, "m d"], beta: float
    ) -> Float[Tensor, "m d"]:
        """Every part of a row at unit length; one that nothing pulls stays."""
        return job.space.unit(mixed(V, pulled, beta), V)
