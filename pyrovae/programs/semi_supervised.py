"""A VAE with a class label, known for some data and summed out or drawn for the others.

    y_i ~ p(y),  z_i ~ p(z),  x_i ~ p(x|z_i, y_i)

K is the number of classes; other symbols as in `pyrovae.vae`.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import as_tensor, check_event_shape, real_number
from pyrovae.checks.places import at, first_true
from pyrovae.contract import validated
from pyrovae.errors import ConfigError, DataError
from pyrovae.handlers import evaluation
from pyrovae.heads import as_event_shape, split_features
from pyrovae.networks import given
from pyrovae.runtime.ambient import exclusive
from pyrovae.vae import fill, observed_only, register, visible

# exp(LOG_ZERO) is 0 in every float type; it is finite, so that 0 · log 0 is 0 and not NaN
LOG_ZERO = -1e4


class CategoricalHead(nn.Module):
    """Categorical classifier head, q(y|x) = Categorical(y; softmax(l)), y in 0 … K − 1.

    The features are the logits l.

    Args:
        num_classes: K.

    Attributes:
        num_features: K.

    Raises:
        ConfigError: num_classes is not a whole number ≥ 1, or the features have the wrong width.

    Example:
        >>> head = CategoricalHead(10)
        >>> head(torch.zeros(7, head.num_features)).batch_shape
        torch.Size([7])
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_features = as_event_shape(num_classes, name="num_classes").numel()

    def forward(self, features: Tensor) -> dist.Distribution:
        (logits,) = split_features(features, torch.Size([self.num_features]))
        return dist.Categorical(logits=logits)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_features}"


class SemiSupervisedVAE(nn.Module):
    """Semi-supervised VAE (model M2 of Kingma et al. 2014): unknown labels y are latent.

    For a datum with and without a label, in nats,

        ELBO(x, y) = E_{q(z|x,y)}[log p(x|z, y) + log p(y) + log p(z) − log q(z|x, y)]
        ELBO(x)    = Σ_y q(y|x) (ELBO(x, y) − log q(y|x))

    and training maximizes  Σ_i ELBO_i + α Σ_{i known} log q(y_i|x_i).

    Labels are whole numbers 0 … K − 1, and any negative number if unknown: y_mask = (y ≥ 0);
    `partly_known(y, y_mask)` encodes a y_mask in y. In the guide, q(y|x) puts all probability
    on a known label. The α term is the factor "classification" of the guide: objectives
    include it, `elbo_terms` does not.

    `pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)` sums exactly over y, so pass it to `fit`.
    Other objectives draw y and have noisy gradients.

    Args:
        prior: `prior()` → p(z), as for `VAE`.
        encoder: `encoder(x, y)` → q(z|x, y), wrapped in `networks.Given` to see y.
        decoder: `decoder(z, y)` → p(x|z, y), also wrapped; y may be (K, 1) if enumerated, which
            `networks.Concat` and `networks.OneHot` support.
        classifier: `classifier(x)` → q(y|x), a Categorical with batch_shape (B,):
            Sequential(network, CategoricalHead(K)).
        label_prior: `label_prior()` → p(y), a Categorical with batch_shape ().
        alpha: α ≥ 0, the weight of log q(y|x) of known labels. The paper uses
            0.1 · (number of data) / (number of known labels).

    Raises:
        ConfigError: alpha is negative or not finite; from functions that take data, classifier
            and label prior differ in K.
        DataError: from functions that take data, y does not hold labels.

    References:
        Semi-supervised Learning with Deep Generative Models, Kingma et al., 2014,
        https://arxiv.org/abs/1406.5298

    Example:
        >>> import pyrovae as pv
        >>> from pyro.infer import TraceEnum_ELBO
        >>> from pyrovae.networks import Given, Concat, OneHot, mlp
        >>> q, p, c = pv.guides.DiagonalNormal(2), pv.likelihoods.Bernoulli(6), CategoricalHead(3)
        >>> program = SemiSupervisedVAE(
        ...     pv.priors.StandardNormal(2),
        ...     Given(Concat(nn.Sequential(mlp(6 + 3, q.num_features), q), of_y=OneHot(3))),
        ...     Given(Concat(nn.Sequential(mlp(2 + 3, p.num_features), p), of_y=OneHot(3))),
        ...     nn.Sequential(mlp(6, c.num_features), c),
        ...     pv.priors.Fixed(dist.Categorical, probs=torch.full((3,), 1 / 3)),
        ...     alpha=1.0,
        ... )
        >>> x, y = torch.ones(4, 6), torch.tensor([2, -1, -1, 0])
        >>> history = pv.fit(
        ...     program, x, y, objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=1
        ... )
        >>> program.classify(x).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        prior: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        classifier: nn.Module,
        label_prior: nn.Module,
        *,
        alpha: float,
    ):
        super().__init__()
        self.prior, self.encoder, self.decoder = prior, encoder, decoder
        self.classifier, self.label_prior = classifier, label_prior
        self.alpha = real_number(alpha, "alpha", least=0.0)

    def model(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run p(x, y, z): plate "data", sites "y", "z", "x", and "label", which fixes known labels.

        Args:
            x: (B, *event), the observed data.
            y: (B,), labels, negative where unknown; None if all are unknown.
            mask: of x's shape, true where x is observed.
        """
        register(self)
        label = self.labels(x, y)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", self.label_prior())
            pyro.factor("label", LOG_ZERO * ((label >= 0) & (y != label)))
            z = pyro.sample("z", self.prior(*given(y, self.prior)))
            p_x = self.decoder(z, *given(y, self.decoder))
            check_event_shape(x, p_x.event_shape)
            pyro.sample("x", observed_only(p_x, mask), obs=fill(x, mask, p_x.support))

    def guide(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run q(y|x) q(z|x, y): plate "data", sites "y" (enumerated on request) and "z"."""
        register(self)
        label = self.labels(x, y)
        with pyro.plate("data", len(x), dim=-1):
            q_y = self._over_labels(self.classifier(*visible(x, mask, self.classifier)))
            known = (label >= 0) * q_y.log_prob(label.clamp(min=0))
            pyro.factor("classification", -self.alpha * known, has_rsample=True)
            y = pyro.sample("y", certain(q_y, label), infer={"enumerate": "parallel"})
            pyro.sample("z", self.encoder(*visible(x, mask, self.encoder), *given(y, self.encoder)))

    def _over_labels(self, q_y: dist.Distribution) -> dist.Distribution:
        classes = self.label_prior().enumerate_support().numel()
        if isinstance(q_y, dist.Categorical) and q_y.logits.shape[-1] == classes:
            return q_y
        has = f" over {q_y.logits.shape[-1]} classes" if isinstance(q_y, dist.Categorical) else ""
        raise ConfigError(
            f"the classifier returned a {type(q_y).__name__}{has}, but q(y|x) must be Categorical "
            f"over the {classes} classes of label_prior, which are summed over.\n"
            f"End the classifier in programs.CategoricalHead({classes})."
        )

    @exclusive
    def classify(self, x: Any, mask: Any = None) -> Tensor:
        """Return q(y|x), the class probabilities (N, K), in eval mode without gradients.

        Args:
            x: (N, *event).
            mask: of x's shape, true where x is observed.

        Raises:
            DataError: x does not fit the decoder.
        """
        x, _, mask = validated(self, x, None, mask).whole()
        with evaluation(self):
            return self.classifier(*visible(x, mask, self.classifier)).probs

    def check_data(self, x: Tensor, y: Tensor) -> None:
        """Check every label before training; errors as for `labels`."""
        self.labels(x, y)

    def labels(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the checked labels, (B,) whole numbers; −1 everywhere if y is None.

        Raises:
            DataError: y is not one whole number < K per datum.
        """
        if y is None:
            return torch.full((len(x),), -1, device=x.device)
        num_classes = self.label_prior().enumerate_support().numel()
        if y.is_floating_point() or y.shape != (len(x),):
            raise DataError(
                f"y has dtype {y.dtype} and shape {tuple(y.shape)}, but labels are one whole number"
                f" for each of {len(x)} data: 0 … {num_classes - 1}, or -1 where unknown.\n"
                "Write y.long(), and y.argmax(-1) for one-hot rows."
            )
        if (y >= num_classes).any():
            row = int((y >= num_classes).byte().argmax())
            raise DataError(
                f"y[{row}] = {int(y[row])}, but there are {num_classes} classes, numbered 0 … "
                f"{num_classes - 1}, and -1 where the label is unknown.\n"
                "Number classes from 0, or increase K in label_prior and classifier."
            )
        return y


def partly_known(y: Any, y_mask: Any) -> Tensor:
    """Return labels for `SemiSupervisedVAE`: y where it is known, −1 elsewhere.

    Args:
        y: (N,), whole numbers ≥ 0 where known; other values, including NaN, are ignored.
        y_mask: (N,), true where the label is known.

    Returns:
        (N,), whole numbers.

    Raises:
        DataError: y_mask is not one boolean per label, or a known label is not a whole
            number ≥ 0.

    Example:
        >>> partly_known(torch.tensor([2, 0, 1]), torch.tensor([True, False, True]))
        tensor([ 2, -1,  1])
    """
    y, known = as_tensor(y, "y"), as_tensor(y_mask, "y_mask")
    if known.shape != y.shape or ((known != 0) & (known != 1)).any():
        raise DataError(
            f"y_mask has shape {tuple(known.shape)} and y {tuple(y.shape)}, but y_mask must hold "
            "true (known) or false for each label.\nWrite for example y_mask=~torch.isnan(y)."
        )
    known = known.bool()
    labels = torch.where(known, y, -1).long()
    is_bad = known & ((labels != y) | (labels < 0))
    if is_bad.any():
        row = first_true(is_bad)
        raise DataError(
            f"y{at(row)} = {y[row].item():g} is marked as known, but labels are the whole numbers "
            f"0, 1, … ({int(is_bad.sum()):,} of {int(known.sum()):,} are not).\n"
            "Correct it, or set y_mask to false there."
        )
    return labels


def certain(q_y: dist.Distribution, label: Tensor) -> dist.Distribution:
    """Return q(y|x) with all probability on the label where it is known (label ≥ 0).

    Args:
        q_y: Categorical, batch_shape (B,).
        label: (B,), whole numbers, negative where unknown.

    Example:
        >>> certain(dist.Categorical(logits=torch.zeros(2, 2)), torch.tensor([1, -1])).probs
        tensor([[0.0000, 1.0000],
                [0.5000, 0.5000]])
    """
    classes = torch.arange(q_y.logits.shape[-1], device=label.device)
    at_label = LOG_ZERO * (classes != label[:, None]).to(q_y.logits)
    return dist.Categorical(logits=torch.where(label[:, None] >= 0, at_label, q_y.logits))
