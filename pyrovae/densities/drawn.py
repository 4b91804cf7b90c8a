"""The log-density of a draw, computed along with the draw.

z = f(u) yields log q(z) = log p(u) − log |det ∂f/∂u|. Recovering u as f⁻¹(z) costs more and
loses digits: z is rounded, and f⁻¹ amplifies the error where f contracts. If log q(z) were
too small at draws from q, the ELBO would not be a bound.
"""

import torch
from torch import Tensor


class RemembersDraw:
    """Mixin for densities whose `rsample` calls `_remember`: log q(z) of the latest draw.

    Its value and its total derivative along z = f(u) equal those of f⁻¹. For ∂ log q / ∂z
    alone, evaluate at `z.detach().requires_grad_()`.
    """

    _drawn: Tensor | None = None
    _log_prob_drawn: Tensor | None = None

    def _remember(self, z: Tensor, log_prob: Tensor) -> Tensor:
        """Return z and store log q(z)."""
        self._drawn, self._log_prob_drawn = z, log_prob
        return z

    def _remembered(self, value: Tensor) -> Tensor | None:
        """Return log q(value) if value is the latest draw, with its path; else None."""
        if value is not self._drawn or self._log_prob_drawn is None:
            return None
        if not torch.is_grad_enabled():
            return self._log_prob_drawn.detach()
        # a leaf has no path to its draw, so the gradient at fixed z is wanted
        return None if value.grad_fn is None else self._log_prob_drawn
