"""`exponential`: orthogonalised gradient iteration (OGI) on the map itself, the post's main algorithm.

    R_S(theta) = f(R theta) ~ sum_l alpha_l (exp(<v_l, theta>) - 1) u_l

A. Mack and A. Turner, "Deep causal transcoding" (2024). It looks at the map where it is steered, at norm R.
"""

from jaxtyping import Float
from torch import Tensor

from dct.errors import NonFiniteError
from dct.fits.shared.iteration import OrthogonalisedIteration
from dct.job import Job


class Exponential(OrthogonalisedIteration):
    name = "exponential"
    about = "orthogonalised gradient iteration on the map at the scale R"

    def update(
        self, job: Job, V: Float[Tensor, "m d"], U: Float[Tensor, "m d_out"] | None
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d_out"]]:
        """In one pass, with the old u (at first with the new one, u_l = unit R_S(v_l)):

        v_l <- gradient at v_l of <u_l, R_S(v_l)>      u_l <- R_S(v_l)
        """
        value, gradient = job.d.value_and_gradient(job.scale * V, U)
        if not bool(value.norm(dim=1).isfinite().all()):
            raise NonFiniteError("the responses are too large for their norms: lower `scale`")
        return gradient, value
