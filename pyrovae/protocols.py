"""Optional hooks of parts, programs, objectives and Datasets.

A part must be a module that returns a distribution, and a program a module with `model` and
`guide`. Everything on this page is optional: callers look for the attribute and do without it if it
is missing, so nothing has to inherit from these classes. Each lists the subpackages that use it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Size, Tensor

# Parts.


class Head(Protocol):
    """A last layer, features → Distribution, of a guide family or a likelihood.

    Used by: networks (`features_of`, `start_at_mean`), builder.
    """

    num_features: int  # the width that it needs: out_features of the network before it
    event_shape: Size  # of its distribution


class HasFeatureShape(Protocol):
    """A head whose features are not (count, *event_shape).

    Used by: networks (`features_of`).
    """

    feature_shape: Size


class LearnsScale(Protocol):
    """A likelihood that may have a learned scale for each number of a datum.

    Used by: training, which warns of constant columns, where the scale falls to 0.
    """

    learns_scale_per_cell: bool | Tensor  # of event_shape, if it differs between numbers


class HasUnit(Protocol):
    """A likelihood of real numbers whose features are in some unit, 1 or the data's spread.

    Used by: training, which warns if x spreads far more.
    """

    unit: Tensor  # of event_shape


class AsksForInputs(Protocol):
    """A likelihood that knows what an encoder should see of its data.

    Used by: builder.
    """

    inputs: Any  # the argument `kinds` of `networks.Inputs`, or None for x itself


class StartsAt(Protocol):
    """A head that finds its own features at the mean of data, and may set numbers of its own.

    Used by: networks (`start_at_mean`).
    """

    def start_at(self, x: Tensor) -> Tensor:
        """Return features (F,) from data (N, *event) in float64, NaN where hidden."""


class SeesMissing(Protocol):
    """A part of x that is called with the mask of x as well, as `networks.SeesMask` is.

    Used by: vae (`visible`), programs; parts that wrap another one pass it on.
    """

    sees_mask: bool


class FillsMissing(Protocol):
    """A part of x with values of its own for missing cells, such as the center of each column.

    Used by: vae (`visible`); parts that wrap another one pass it on.
    """

    neutral: Tensor | None  # of event_shape


class ChecksData(Protocol):
    """A part whose covariates y must satisfy more than having one row per datum, or a program.

    Used by: contract, for every batch; without y, only that of the program.
    """

    def check_data(self, x: Tensor, y: Tensor | None) -> None:
        """Raise a DataError that names the row, unless x, (N, *event), and y are right."""


class StartsFromData(Protocol):
    """A part whose constructor takes arguments made from training data.

    `from_data` maps the name of each to a function of the data, (N, *event), which returns a
    tensor; hidden cells are NaN. `build(data=x)` calls it unless the option is given, and draws
    with its own seed; without data, an argument with a default keeps that.
    `load` passes a placeholder of the same shape and range instead, and then fills the part from
    the file.

    Used by: builder.
    """

    from_data: Mapping[str, Callable[[Tensor], Tensor]]


# Distributions.


class Relaxed(Protocol):
    """A continuous relaxation of a discrete density: its ELBO bounds the relaxed model's evidence.

    Used by: core (`bound_on`).
    """

    is_relaxed: bool


class Enumerable(Protocol):
    """A discrete density that lists all of its values, as in torch.

    Used by: Pyro, which sums them out where `has_enumerate_support` is true (`EnumELBO`);
    programs, for the number of classes.
    """

    has_enumerate_support: bool

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all values, (K, *batch or 1s, *event)."""


class HasKinds(Protocol):
    """A density of cells whose kind differs between columns.

    Used by: checks, whose messages name the kind; posterior, which does not average codes.
    """

    is_nominal: Tensor  # (C,), whether the numbers of a column are codes without order

    def kind_of(self, column: int) -> str:
        """Return the name of the kind of a column."""


class HasLevels(Protocol):
    """A support of finitely many levels between 0 and 1, such as gray levels.

    Used by: checks, for the advice in an error.
    """

    num_levels: int


# Programs.


class SeesCovariates(Protocol):
    """A program that declares whether it uses y; without the attribute, y is always passed.

    Used by: contract, training.
    """

    sees_covariates: bool


class ReadsFrames(Protocol):
    """A program that reads data frames by a schema: names, kinds and categories of columns.

    `fit` gives one to a program that it trains on named columns or classes; `build` to a program
    for a table.

    Used by: contract, for all data; training; model_file.
    """

    schema: Any  # a `data.Schema`, or None


class ChecksParts(Protocol):
    """A program that can check its own parts, and thereby whether it uses a mask.

    Used by: contract, on the first two rows.
    """

    def check_parts(self, x: Tensor, y: Tensor | None, mask: Tensor | None) -> None:
        """Raise a ConfigError unless the parts fulfill their contract."""


class HasParts(Protocol):
    """A program with a single encoder and decoder.

    Used by: training, which monitors the encoder's gradient, and warns if the decoder cannot learn.
    """

    encoder: Any
    decoder: Any


class Specified(Protocol):
    """A program that `build` made and can rebuild.

    Used by: model_file (`save`), arviz_io.
    """

    spec: dict[str, Any]  # the arguments of build except for the data and the seed, as JSON
    data_spec: dict[str, Any]  # kind of part → argument → shape and range, if taken from data


# Objectives and Datasets.


class FollowsProgress(Protocol):
    """An objective with schedules: weights that change during training.

    Used by: training.
    """

    progress: float  # the fraction of training done, in [0, 1]; set before each step

    def weights(self) -> dict[str, float]:
        """Return the weights at `progress`, by name."""


class Fingerprinted(Protocol):
    """A Dataset that identifies its content more cheaply than by a hash of every item.

    Used by: data, for the checkpoint of a run; a resumed run compares it.
    """

    def fingerprint(self) -> dict[str, Any]:
        """Return a flat record that is equal only for equal data."""


class Drawn(Protocol):
    """Images that are binarized anew at each access, with a fixed draw for evaluation.

    Used by: cli.
    """

    def draw(self, seed: int) -> Tensor:
        """Return one fixed draw, (N, *event)."""
