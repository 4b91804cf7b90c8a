"""A VAE as a scikit-learn transformer, for pipelines and grid searches.

    transform(X)            E[z|x] under q(z|x), the codes
    inverse_transform(Z)    E[x|z]
    score_samples(X)        an estimate of log p(x), nats
    impute(X)               X with E[x_missing | x_observed] in its NaN cells

It is `build`, `fit`, `encode`, `log_evidence` and `impute` under scikit-learn's names, in float64.
Programs, other objectives and run folders are for `pyrovae.fit`.
"""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from pyrovae.builder import Choice, build
from pyrovae.checks import whole_number
from pyrovae.evidence import log_evidence
from pyrovae.posterior.imputation import impute
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.training import fit

LEARNED_NORMAL = {"name": "Normal", "learn_scale": True}
READING_SEED = 0  # of readings: the same X has the same score


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """VAE of the columns of X, (n_samples, n_features); NaN cells are missing.

    Args:
        latent_dim: D, the number of codes per row.
        prior, guide, likelihood, network, hidden: as for `build`; the likelihood None is a normal
            with a learned scale.
        epochs, batch_size, learning_rate: as for `fit`.
        num_samples: draws of z per row for `score_samples`; ten times as many for `impute`.
        random_state: seed of the weights and of training.

    Attributes:
        vae_: the trained VAE.
        history_: its `History`.
        n_features_in_, feature_names_in_: of X.

    Raises:
        ValueError: X is not a two-dimensional array of numbers, has fewer than two rows, or does
            not have the columns of the X that was fitted; `DataError` and `ConfigError` are
            ValueErrors too.

    References:
        Auto-Encoding Variational Bayes, Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114;
        imputation: MIWAE, Mattei & Frellsen, 2019, https://arxiv.org/abs/1812.02633

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> X = load_iris().data
        >>> model = make_pipeline(StandardScaler(), VAETransformer(epochs=5, random_state=0))
        >>> model.fit_transform(X).shape
        (150, 2)
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        prior: Choice = "StandardNormal",
        guide: Choice = "DiagonalNormal",
        likelihood: Choice | None = None,
        network: Choice = "mlp",
        hidden: tuple[int, ...] | None = None,
        epochs: int = 200,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        num_samples: int = 1000,
        random_state: Any = None,
    ):
        self.latent_dim = latent_dim
        self.prior, self.guide, self.likelihood = prior, guide, likelihood
        self.network, self.hidden = network, hidden
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.num_samples, self.random_state = num_samples, random_state

    def fit(self, X: Any, y: Any = None) -> "VAETransformer":
        """Train on X; y is ignored.

        Args:
            X: (n_samples, n_features), NaN where missing.
            y: ignored.
        """
        X = self._validated(X, reset=True, ensure_min_samples=2)
        seed = int(check_random_state(self.random_state).randint(2**31))
        self.vae_ = build(
            X.shape[1],
            latent_dim=self.latent_dim,
            prior=self.prior,
            guide=self.guide,
            likelihood=self.likelihood or LEARNED_NORMAL,
            network=self.network,
            hidden=self.hidden,
            data=_filled(X),
            seed=seed,
        ).double()
        how = {name: getattr(self, name) for name in ("epochs", "batch_size", "learning_rate")}
        x, mask = _data(X)
        self.history_ = fit(self.vae_, x, mask=mask, **how, seed=seed, progress=False)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return codes: the mean of q(z|x), or of 1000 draws if it has none in closed form.

        Returns:
            (n_samples, latent_dim).
        """
        x, mask = self._read(X)
        with torch.no_grad():
            q = self.vae_.encode(x, mask=mask)
            try:
                return q.mean.numpy()
            except NotImplementedError:  # a flow
                with RandomStream(READING_SEED):
                    return q.sample((1000,)).mean(0).numpy()

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """Return E[x|z], (n_samples, n_features), in the units of X.

        Args:
            Z: (n_samples, latent_dim), codes.
        """
        check_is_fitted(self)
        with torch.no_grad():
            return self.vae_.decode(torch.from_numpy(check_array(Z, dtype="float64"))).mean.numpy()

    def score_samples(self, X: Any) -> np.ndarray:
        """Estimate log p(x) of the observed cells of each row, nats; see `log_evidence`.

        Returns:
            (n_samples,).
        """
        x, mask = self._read(X)
        how = {"num_samples": self.num_samples, "seed": READING_SEED}
        return log_evidence(self.vae_, x, mask=mask, **how).log_px.numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of `score_samples`, nats per row; higher is better. y is ignored."""
        return float(self.score_samples(X).mean())

    def impute(self, X: Any) -> np.ndarray:
        """Return X with E[x_missing | x_observed] in its NaN cells; see `pyrovae.impute`."""
        x, mask = self._read(X)
        if mask is None:
            return x.numpy()
        how = {"num_samples": self.num_samples, "num_proposals": 10 * self.num_samples}
        return impute(self.vae_, x, mask=mask, **how, seed=READING_SEED).mean.numpy()

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw rows from the model, (n_samples, n_features)."""
        check_is_fitted(self)
        seed = int(check_random_state(random_state).randint(2**31))
        return self.vae_.sample(whole_number(n_samples, "n_samples", 1), seed=seed).numpy()

    @property
    def _n_features_out(self) -> int:
        return self.latent_dim

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64"]
        return tags

    def _read(self, X: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        check_is_fitted(self)
        return _data(self._validated(X, reset=False))

    def _validated(self, X: Any, **settings: Any) -> np.ndarray:
        return validate_data(
            self, X, dtype="float64", ensure_all_finite="allow-nan", copy=True, **settings
        )


def _filled(X: np.ndarray) -> torch.Tensor:
    """Return X with the mean of its column in missing cells, 0 if all of it is missing."""
    is_missing = np.isnan(X)
    count = (~is_missing).sum(0)
    mean = np.where(is_missing, 0, X).sum(0) / np.maximum(count, 1)
    return torch.from_numpy(np.where(is_missing, mean, X))


def _data(X: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return x, and the mask if a cell is missing."""
    x = torch.from_numpy(np.ascontiguousarray(X))
    mask = ~x.isnan()
    return x, None if mask.all() else mask
