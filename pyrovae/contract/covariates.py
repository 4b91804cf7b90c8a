"""Checks of covariates, and the dtype and device of a program."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import as_tensor, check_finite
from pyrovae.data import Schema
from pyrovae.errors import ConfigError, DataError
from pyrovae.runtime.modes import modules_of


class TensorOptions(NamedTuple):
    """Device and dtype of a program; the device is None if it has no parameters."""

    device: torch.device | None
    dtype: torch.dtype


def tensor_options(program: nn.Module) -> TensorOptions:
    """Return the device and dtype of the first floating-point parameter.

    Raises:
        ConfigError: nothing can be computed with it: it has 16 bits or no value, or it was made in
            inference mode.
    """
    for module in modules_of(program):
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                _check_computable(parameter, program)
                return TensorOptions(parameter.device, parameter.dtype)
    return TensorOptions(None, torch.get_default_dtype())


def _check_computable(parameter: Tensor, program: nn.Module) -> None:
    whose = f"the parameters of this {type(program).__name__}"
    if parameter.itemsize < 4:
        raise ConfigError(
            f"{whose} are {parameter.dtype}, but log-densities of hundreds of nats need more than "
            "its 3 digits, and sums of them more still.\nWrite vae.float(); to compute only the "
            "networks in 16 bits, train with fit(…, precision='bf16')."
        )
    if parameter.is_meta:
        raise ConfigError(
            f"{whose} are on the device 'meta', where tensors have shapes but no values: there is "
            "nothing to train or to evaluate.\nBuild it outside of torch.device('meta')."
        )
    if parameter.is_inference():
        raise ConfigError(
            f"{whose} were made in inference mode: they cannot be trained, and nobody sees when "
            "they change.\nBuild it outside of torch.inference_mode(), and evaluate it inside."
        )


def like_parameters(value: Tensor, program: nn.Module) -> Tensor:
    """Return `value` in the dtype and on the device of the program's parameters.

    A program without parameters takes torch's default dtype.

    Example:
        >>> like_parameters(torch.zeros(2, dtype=torch.uint8), nn.Linear(2, 1).double()).dtype
        torch.float64
    """
    return value.to(*tensor_options(program))


def read_by_schema(program: nn.Module, x: Any, y: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Return data as the program's schema reads data frames and names; others unchanged."""
    schema = getattr(program, "schema", None)
    return (x, read_names(program, y), mask) if schema is None else schema.read(x, y, mask)


def read_names(program: nn.Module, y: Any) -> Any:
    """Return y with names of classes as the codes of the program's schema.

    Raises:
        DataError: a name is unknown, or the program knows no names.
    """
    return (getattr(program, "schema", None) or Schema()).read_y(y)


def check_num_rows(x: Any) -> None:
    """Raise DataError unless x has at least one row."""
    if not x.dim() or not len(x):
        raise DataError(
            f"x has shape {tuple(x.shape)}, so it has no rows (N = 0): there is nothing to learn "
            "from or to score.\nPass one datum per row, (N, …); for a single datum write x[None]."
        )


def check_num_covariates(y: Any, num_data: int) -> None:
    """Raise DataError unless y has num_data rows."""
    if not y.dim() or len(y) != num_data:
        raise DataError(
            f"y has shape {tuple(y.shape)}, but there are {num_data:,} rows of data, and each "
            "needs its own covariates.\nPass y with as many rows."
        )


def checking_parts(program: nn.Module, *, has_y: bool) -> list[nn.Module]:
    """Return the modules that check their data by `check_data`; without y, only the program."""
    modules = program.modules() if has_y else (program,)
    return [module for module in modules if hasattr(module, "check_data")]


def sees_covariates(program: nn.Module) -> bool:
    """Return whether the program uses y; a `VAE` does if a part is `Given`."""
    return getattr(program, "sees_covariates", True)


def check_is_seen(program: nn.Module) -> None:
    """Raise DataError unless the program sees the covariates that were given."""
    if not sees_covariates(program):
        raise DataError(
            "y was given, but no part of this VAE sees covariates: they would change nothing.\n"
            "Wrap the part that should see them: networks.Given(part). For a mask write mask=…, "
            "and (x, None, mask) in validation."
        )


def check_is_not_mask(y: Any, x: Any) -> None:
    """Raise DataError for a mask in the position of covariates."""
    if getattr(y, "dtype", None) in (torch.bool, bool) and y.shape == getattr(x, "shape", None):
        raise DataError(
            "each datum comes as (x, y) with a y that looks like a mask: bool, and of x's shape. "
            "No part of this VAE sees covariates, so it would be ignored.\n"
            "Return each datum as {'x': x, 'mask': mask}."
        )


def as_covariates(y: Any, num_data: int, program: nn.Module) -> Tensor | None:
    """Return y as a tensor of num_data rows; floats in the parameters' dtype, integers as is."""
    options = tensor_options(program)
    if y is None:
        return None
    y = as_tensor(read_names(program, y), "y")
    check_num_covariates(y, num_data)
    check_finite(y, name="y")
    check_is_seen(program)
    return y.to(options.device, options.dtype if y.is_floating_point() else y.dtype)
