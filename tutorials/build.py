"""Run the tutorials and write their notebooks.

    python tutorials/build.py              # all of them, in full
    python tutorials/build.py 01 03        # those whose names start so

The truth is the script `NN_name.py` in jupytext's percent format: `# %%` opens a code cell,
`# %% [markdown]` one of text. Edit that, then run this; `NN_name.ipynb` is the same cells with
their outputs and pictures, for reading, and `jupytext` keeps the two paired for whoever edits
in Jupyter. A cell's id is its place; times, machine and kernel versions are left out, so that
building again changes only what came out differently.

Needs the extra `tutorials` (nbclient, ipykernel, ipywidgets); `cells`, which the tests use, does
not.
"""

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
SMOKE = "PYROVAE_SMOKE"  # set: little data and few steps; see the first code cell of each
MARKER = re.compile(r"^# %%( \[markdown\])?\n", flags=re.MULTILINE)
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class Cell(NamedTuple):
    """A cell of a tutorial: its kind, "code" or "markdown", and its text as Jupyter shows it."""

    kind: str
    text: str


def sources() -> list[Path]:
    """The scripts of all tutorials, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def cells(source: str) -> list[Cell]:
    """The cells of a script in percent format.

    Raises:
        ValueError: a line of a text cell is no comment, or something stands before the cells.
    """
    before, *parts = MARKER.split(source)
    if before.strip():
        raise ValueError(f"the script starts with {before[:40]!r}, not with a line '# %%'")
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [
        Cell("markdown", uncommented(text.strip())) if kind else Cell("code", text.strip())
        for kind, text in pairs
    ]


def uncommented(text: str) -> str:
    """Markdown without the "# " before each of its lines."""
    lines = text.splitlines()
    stray = [line for line in lines if line != "#" and not line.startswith("# ")]
    if stray:
        raise ValueError(f"a text cell has the line {stray[0]!r}; write it as a comment, '# …'")
    return "\n".join(line[2:] for line in lines)


def executed(parts: list[Cell]) -> dict[str, Any]:
    """The notebook of these cells with their outputs, run top to bottom in a fresh kernel.

    An error in a cell, or anything on its stderr, such as a warning, stops the build.
    """
    import nbformat
    from nbclient import NotebookClient

    make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    made = [make[cell.kind](cell.text, id=f"cell-{i}") for i, cell in enumerate(parts)]
    notebook = nbformat.v4.new_notebook(cells=made, metadata=METADATA)
    with tempfile.TemporaryDirectory() as folder:  # what a cell writes leaves no trace
        NotebookClient(
            notebook,
            timeout=600,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()
    for cell in made:
        if cell.cell_type == "code":
            cell.outputs = [concat(output) for output in cell.outputs]
            refuse_stderr(cell)
    notebook.metadata = METADATA
    return json.loads(nbformat.writes(notebook))


def refuse_stderr(cell: Any) -> None:
    """RuntimeError where a cell wrote to stderr: a warning, say, with paths of this machine."""
    for output in cell.outputs:
        if output.get("name") == "stderr":
            raise RuntimeError(f"{cell.id} wrote to stderr:\n{output['text']}")


def concat(output: Any) -> Any:
    """An output as it is stored: a picture's base64 without a line break at its end."""
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = data["image/png"].strip()
        data.pop("text/plain", None)  # "<Figure size 900x400 …>" beside its own picture
    return output


def build(source: Path) -> None:
    """Run one script in full and write its notebook beside it."""
    start = time.perf_counter()
    notebook = executed(cells(source.read_text(encoding="utf-8")))
    target = source.with_suffix(".ipynb")
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    target.write_text(text, encoding="utf-8")
    took = time.perf_counter() - start
    print(f"{target.name}: {took:.0f} s, {len(text.encode()) / 1024:.0f} kB")


def main(names: list[str]) -> None:
    """Build the tutorials whose names start with one of these; all of them for none."""
    chosen = [s for s in sources() if not names or s.name.startswith(tuple(names))]
    if not chosen:
        sys.exit(f"no tutorial starts with {' or '.join(names)}; there are {sources()[0].name}, …")
    os.environ.pop(SMOKE, None)
    os.environ["OMP_NUM_THREADS"] = "1"  # the same sums in the same order on every machine
    for source in chosen:
        build(source)


if __name__ == "__main__":
    main(sys.argv[1:])
