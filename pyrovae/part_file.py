"""Encoder and decoder as files that run without pyrovae: ONNX, and PyTorch's exported programs.

    encoder   x (B, *event)  ->  mean, stddev of q(z|x), each (B, D)
    decoder   z (B, D)       ->  mean E[x|z], (B, *event)

Both also take y if they are `Given` covariates; an encoder that is `SeesMask` takes the mask
before it. B is free. What is exported is the part in eval
mode; draws, densities and the prior stay in Python.
"""

import io
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyrovae.checks import as_path
from pyrovae.contract import validated
from pyrovae.errors import ConfigError
from pyrovae.handlers import evaluation
from pyrovae.networks import given
from pyrovae.runtime.ambient import exclusive
from pyrovae.runtime.files import write_atomically
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.vae import VAE, is_plain_vae, visible

NUM_ROWS = 7  # of the example: torch takes sizes that are equal by chance to be equal always
MOMENTS = {"encoder": ("mean", "stddev"), "decoder": ("mean",)}


class Moments(nn.Module):
    """A part as a function to tensors: inputs -> moments of the density that the part returns."""

    def __init__(self, part: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.part, self.names = part, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        density = self.part(*inputs)
        return tuple(getattr(density, name) for name in self.names)


class Example(NamedTuple):
    """Moments of a part, and named inputs of a few rows to trace them with."""

    moments: Moments
    inputs: dict[str, Tensor]

    @property
    def dynamic_shapes(self) -> Any:
        """The number of rows is free, and the same for all inputs."""
        batch = torch.export.Dim("batch")
        return (tuple({0: batch} for _ in self.inputs),)


@exclusive
def export(
    vae: VAE, path: str | os.PathLike[str], x: Any, y: Any = None, *, part: str = "encoder"
) -> Path:
    """Write the encoder or the decoder to a file that runs without pyrovae.

    `.onnx`   ONNX, for onnxruntime and others; needs onnx and onnxscript:
              pip install 'pyrovae[export]'
    `.pt2`    PyTorch's exported program: torch.export.load(path).module()(x)

    Inputs are named x (decoder: z), mask and y, outputs mean and stddev (decoder: mean), all in the
    dtype of the parameters; the number of rows is free. Missing cells of x must be filled with 0.

    Args:
        vae: a VAE with the standard model and guide.
        path: the file; its name determines the format.
        x: data, as for `encode`; their first row is the example to trace.
        y: (N, …), covariates alongside x.
        part: "encoder" or "decoder".

    Returns:
        The path.

    Raises:
        ConfigError: part or the suffix is unknown, the program is not a plain VAE, the density has
            no mean in closed form (a flow), or torch cannot export a custom network.
        DataError: x does not fit the VAE.
        ImportError: `.onnx` without onnx and onnxscript.
        CheckpointError: the file cannot be written; an existing one stays.

    References:
        torch.export, https://docs.pytorch.org/docs/stable/export.html;
        torch.onnx, https://docs.pytorch.org/docs/stable/onnx_export.html

    Example:
        >>> import tempfile
        >>> import pyrovae as pv
        >>> vae, x = pv.build((4,), latent_dim=2, seed=0), torch.ones(3, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export(vae, f"{folder}/encoder.pt2", x)
        ...     mean, stddev = torch.export.load(path).module()(x)
        >>> torch.allclose(mean, vae.encode(x).mean)
        True
    """
    path = as_path(path)
    write = {".onnx": _as_onnx, ".pt2": _as_exported_program}.get(path.suffix)
    if write is None:
        raise ConfigError(
            f"path = {str(path)!r}, but its name must end in .onnx or .pt2, which determines the "
            "format.\nWrite for example export(vae, 'encoder.onnx', x)."
        )
    if part not in MOMENTS:
        raise ConfigError(f"part = {part!r}, but a VAE has an 'encoder' and a 'decoder' to export.")
    if not is_plain_vae(vae):
        raise ConfigError(
            f"export writes the parts of a VAE, but this is a {type(vae).__name__} with a model or "
            "guide of its own.\nExport its networks with torch.export."
        )
    rows = validated(vae, x, y).head().repeat(NUM_ROWS)
    with (
        evaluation(vae),
        RandomStream(0),
        pyro.validation_enabled(False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of torch's own use of deprecated functions
        content = write(_example_of(vae, part, rows.x, rows.y))
    write_atomically(path, content)
    return path


def _example_of(vae: VAE, part: str, x: Tensor, y: Tensor | None) -> Example:
    module = getattr(vae, part)
    seen = visible(x, None, vae.encoder)
    of_x = dict(zip(("x", "mask"), seen, strict=False))
    if part == "decoder":
        of_x = {"z": vae.encoder(*seen, *given(y, vae.encoder)).sample()}
    inputs = of_x | dict(zip("y", given(y, module), strict=False))
    moments = Moments(module, MOMENTS[part])
    try:
        moments(*inputs.values())
    except NotImplementedError as error:
        raise ConfigError(
            f"the {part}'s density has no {' and '.join(MOMENTS[part])} in closed form, so the "
            "file would have no output.\nExport a part with a normal density, or another network."
        ) from error
    return Example(moments, inputs)


def _exported(example: Example) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(
            example.moments, tuple(example.inputs.values()), dynamic_shapes=example.dynamic_shapes
        )
    except Exception as error:  # torch has no common class for what it cannot trace
        reason = str(error).strip().partition("\n")[0][:200]
        raise ConfigError(
            f"torch.export cannot trace this part: {reason}\n"
            "It must not depend on values of its input, nor treat one batch size differently."
        ) from error


def _as_exported_program(example: Example) -> bytes:
    file = io.BytesIO()
    torch.export.save(_exported(example), file)
    return file.getvalue()


def _as_onnx(example: Example) -> bytes:
    program = torch.onnx.export(
        _exported(example),
        input_names=list(example.inputs),
        output_names=list(example.moments.names),
        verbose=False,
    )
    return program.model_proto.SerializeToString()
