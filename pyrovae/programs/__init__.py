"""Programs beyond the VAE, with a second latent: local and discrete, or global.

    SemiSupervisedVAE   y_i ~ p(y),  z_i ~ p(z),    x_i ~ p(x|z_i, y_i);   some y_i are known
    BayesianVAE         w ~ p(w),    z_i ~ p(z|w),  x_i ~ p(x|z_i, w)

Each is a module with `.model` and `.guide` over the plate "data", made of the same parts
as a `VAE`, and works with `fit`, `elbo_terms` and the other methods. Symbols as in
`pyrovae.vae`; K is the number of classes.

Each has a file of its own, short enough to serve as a template for custom programs.
"""

from pyrovae.programs.bayesian import BayesianVAE, GivenGlobal
from pyrovae.programs.semi_supervised import CategoricalHead, SemiSupervisedVAE, partly_known

__all__ = ["BayesianVAE", "CategoricalHead", "GivenGlobal", "SemiSupervisedVAE", "partly_known"]
