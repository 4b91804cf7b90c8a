"""A VAE of several modalities, any of which may be missing."""

from collections.abc import Mapping

import pyro
from torch import Tensor, nn

from pyrovae.data.batch import num_rows
from pyrovae.errors import ConfigError, DataError
from pyrovae.programs.experts import ProductOfExperts
from pyrovae.vae import fill, observed_only, register, visible

Arrays = dict[str, Tensor]


class MultimodalVAE(nn.Module):
    """VAE of M modalities with one code: z ~ p(z), x_m ~ p(x_m|z) for each m.

        log p(x_observed) ≥ E_q[Σ_{m observed} log p(x_m|z)] − KL(q(z|x_observed) ‖ p(z))

    x is a dict of arrays (N, *event_m) by modality, and mask a dict of masks: (N,) where a whole
    modality is missing for a datum, or of the array's shape for single cells.

    Args:
        prior: `prior()` → p(z).
        encoders: by modality, `encoders[m](x_m)` → N(μ_m, diag σ_m²).
        decoders: by modality, `decoders[m](z)` → p(x_m|z); their names are those of the sites.
        experts: combines the encoders' densities; a `ProductOfExperts` by default, or a
            `MixtureOfExperts`.

    Raises:
        ConfigError: encoders and decoders have different names.
        DataError: at run time, x is not a dict.

    References:
        Multimodal Generative Models for Scalable Weakly-Supervised Learning, Wu & Goodman, 2018,
        https://arxiv.org/abs/1802.05335

    Example:
        >>> import torch
        >>> import pyrovae as pv
        >>> from torch.nn import Sequential
        >>> image, text = pv.build((6,), latent_dim=2), pv.build((4,), latent_dim=2)
        >>> program = MultimodalVAE(
        ...     image.prior,
        ...     {"image": image.encoder, "text": text.encoder},
        ...     {"image": image.decoder, "text": text.decoder},
        ... )
        >>> x = {"image": torch.ones(5, 6), "text": torch.zeros(5, 4)}
        >>> mask = {"text": torch.tensor([True, True, False, True, True])}
        >>> pv.elbo_terms(program, x, mask=mask).log_likelihoods["text"][0, 2]
        tensor(0.)
    """

    def __init__(
        self,
        prior: nn.Module,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        experts: nn.Module | None = None,
    ):
        super().__init__()
        if list(encoders) != list(decoders):
            raise ConfigError(
                f"the encoders are of {', '.join(encoders)}, but the decoders of "
                f"{', '.join(decoders)}: each modality needs one of each.\n"
                "Give both dicts the same names in the same order."
            )
        self.prior, self.experts = prior, experts or ProductOfExperts()
        self.encoders, self.decoders = nn.ModuleDict(encoders), nn.ModuleDict(decoders)

    def model(self, x: Arrays, y: Tensor | None = None, mask: Arrays | None = None) -> None:
        """Run p(x, z): plate "data", site "z" and one for each modality; y is not used."""
        register(self)
        if not isinstance(x, Mapping):
            raise DataError(
                f"x is one array of shape {tuple(x.shape)}, but a MultimodalVAE observes several "
                f"modalities.\nPass a dict of arrays: {', '.join(self.decoders)}."
            )
        mask = mask or {}
        with pyro.plate("data", num_rows(x), dim=-1):
            z = pyro.sample("z", self.prior())
            for name, decoder in self.decoders.items():
                p_x, seen = decoder(z), mask.get(name)
                pyro.sample(name, observed_only(p_x, seen), obs=fill(x[name], seen, p_x.support))

    def guide(self, x: Arrays, y: Tensor | None = None, mask: Arrays | None = None) -> None:
        """Run q(z|x): site "z". Arguments as for `model`."""
        register(self)
        mask = mask or {}
        found = [
            encoder(*visible(x[n], mask.get(n), encoder)) for n, encoder in self.encoders.items()
        ]
        observed = [_has_data(mask.get(name)) for name in self.encoders]
        with pyro.plate("data", num_rows(x), dim=-1):
            pyro.sample("z", self.experts(found, observed, self.prior()))


def _has_data(mask: Tensor | None) -> Tensor | None:
    """Return (B,), whether anything of a modality is observed."""
    return mask if mask is None or mask.dim() == 1 else mask.flatten(1).any(1)
