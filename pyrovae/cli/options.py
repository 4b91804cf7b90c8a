"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pyrovae.cli.base import file_name, path_of

RunFolder = Annotated[
    Path, Argument(parser=path_of, metavar="RUN", help="A folder made by pyrovae fit.")
]
DataOption = Annotated[
    str | None,
    Option(parser=file_name, metavar="FILE", help="The file of the run's data, if it has moved."),
]
SamplesOption = Annotated[
    int, Option(min=21, metavar="K", help="Draws of z per datum, for log p(x).")
]
SeedOption = Annotated[int, Option(min=0, metavar="N", help="Seed of all draws.")]
JsonOption = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]
ForceOption = Annotated[bool, Option("--force", help="Replace an existing file.")]
