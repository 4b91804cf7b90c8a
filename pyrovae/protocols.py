"""What a part, a program, an objective or a Dataset may offer beyond what it must.

A part must be a module that returns a distribution, and a program a module with `model` and
`guide`. Everything on this page is optional: whoever asks looks for the attribute, and does
without where there is none, so nothing has to inherit from these classes. Each says which rooms
of the package ask for it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Size, Tensor

# Parts.


class Head(Protocol):
    """A last layer, features → Distribution, of a guide family or a likelihood.

    Asked by: networks (`features_of`, `start_at_mean`), builder.
    """

    num_features: int  # the width that it needs: out_features of the network before it
    event_shape: Size  # of its distribution


class LearnsScale(Protocol):
    """A likelihood that may have a learned scale for each number of a datum.

    Asked by: training, which warns of columns that are constant: there the scale falls to 0.
    """

    learns_scale_per_cell: bool


class ChecksData(Protocol):
    """A part that knows more about its covariates y than that there is one row per datum.

    Asked by: contract, for every batch.
    """

    def check_data(self, x: Tensor, y: Tensor | None) -> None:
        """Raise a DataError that names the row, unless y fits x, (N, *event)."""


class StartsFromData(Protocol):
    """A part whose constructor takes arguments made from training data.

    `from_data` maps the name of each to a function of the data, (N, *event), which returns a
    tensor. `build(data=x)` calls it unless the option is given, and draws with its own seed.
    `load` stands a tensor of the same shape and range in for it, before it fills the part with the
    numbers of the file.

    Asked by: builder.
    """

    from_data: Mapping[str, Callable[[Tensor], Tensor]]


# Distributions.


class Relaxed(Protocol):
    """A continuous stand-in for a discrete density: its ELBO bounds the evidence of another model.

    Asked by: core (`bound_on`).
    """

    is_relaxed: bool


class Enumerable(Protocol):
    """A discrete density that lists all of its values, as in torch.

    Asked by: Pyro, which sums them out where `has_enumerate_support` is true (`EnumELBO`);
    programs, for the number of classes.
    """

    has_enumerate_support: bool

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all values, (K, *batch or 1s, *event)."""


class HasLevels(Protocol):
    """A support of finitely many levels between 0 and 1, such as gray levels.

    Asked by: checks, for the advice in an error.
    """

    num_levels: int


# Programs.


class SeesCovariates(Protocol):
    """A program that knows whether y changes anything; without it, y is passed unasked.

    Asked by: contract, training.
    """

    sees_covariates: bool


class ChecksParts(Protocol):
    """A program that can check its own parts, and by that whether it uses a mask.

    Asked by: contract, on the first two rows.
    """

    def check_parts(self, x: Tensor, y: Tensor | None, mask: Tensor | None) -> None:
        """Raise a ConfigError unless the parts keep their contract."""


class HasParts(Protocol):
    """A program with a single encoder and decoder.

    Asked by: training, which looks at the gradient of the encoder alone, and whether the decoder
    learns at all.
    """

    encoder: Any
    decoder: Any


class Specified(Protocol):
    """A program that `build` made, and can make again.

    Asked by: model_file (`save`), arviz_io.
    """

    spec: dict[str, Any]  # the arguments of build except for the data and the seed, as JSON
    data_spec: dict[str, Any]  # kind of part → argument → shape and range of what data gave it


# Objectives and Datasets.


class FollowsProgress(Protocol):
    """An objective with schedules: numbers that change as training goes on.

    Asked by: training.
    """

    progress: float  # the fraction of training done, in [0, 1]; set before each step

    def weights(self) -> dict[str, float]:
        """Return the numbers at `progress`, by name."""


class Fingerprinted(Protocol):
    """A Dataset that identifies its content more cheaply than by a hash of every item.

    Asked by: data, for the checkpoint of a run; a resumed run compares it.
    """

    def fingerprint(self) -> dict[str, Any]:
        """Return flat facts that are equal only for equal data."""


class Drawn(Protocol):
    """Images that are binarized anew at each look, with a fixed draw for evaluation.

    Asked by: cli.
    """

    def draw(self, seed: int) -> Tensor:
        """Return one fixed draw, (N, *event)."""
