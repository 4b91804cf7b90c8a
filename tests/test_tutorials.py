"""The tutorials: each script runs, and its notebook is that script with its outputs.

Here they run in smoke mode, with little data and few steps, in this process; `pytest -m slow` runs
them in full. The notebooks are read as JSON, so nothing of Jupyter is needed.
"""

import base64
import json
import re
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tutorials.build import FOLDER, SMOKE, Cell, cells, sources

ROOT = FOLDER.parent
SOURCES = sources()
MAX_CODE_CELLS = 12
MAX_SIZE = 400 * 1024
MINUTES = 3.0

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def run(source: Path) -> dict:
    """Return the names defined by running the script as a fresh `__main__`."""
    namespace = {"__name__": "__main__"}
    exec(compile(source.read_text(encoding="utf-8"), source.name, "exec"), namespace)
    return namespace


def notebook(source: Path) -> dict:
    return json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))


def text_of(source: Path) -> str:
    """All Markdown of a tutorial."""
    parts = cells(source.read_text(encoding="utf-8"))
    return "\n\n".join(cell.text for cell in parts if cell.kind == "markdown")


def concat(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def outputs(source: Path) -> list[dict]:
    return [o for cell in notebook(source)["cells"] for o in cell.get("outputs", [])]


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


def test_there_are_tutorials_numbered_without_a_gap():
    assert SOURCES
    assert [int(path.name[:2]) for path in SOURCES] == list(range(1, len(SOURCES) + 1))


@each_source
def test_runs_in_smoke_mode(source, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(SMOKE, "1")
    monkeypatch.chdir(tmp_path)
    run(source)
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
@each_source
def test_runs_in_full_within_three_minutes(source, monkeypatch, tmp_path):
    monkeypatch.delenv(SMOKE, raising=False)
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    run(source)
    assert time.process_time() - start < 60 * MINUTES


@each_source
def test_notebook_has_the_cells_of_its_script(source):
    """After an edit: `python tutorials/build.py`."""
    stored = [Cell(cell["cell_type"], concat(cell["source"])) for cell in notebook(source)["cells"]]
    assert stored == cells(source.read_text(encoding="utf-8"))


@each_source
def test_notebook_is_one_clean_run(source):
    code = [cell for cell in notebook(source)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {(output["output_type"], output.get("name")) for output in outputs(source)}
    assert kinds <= {("stream", "stdout"), ("display_data", None)}
    assert all(cell["metadata"] == {} for cell in code)  # no times of execution


@each_source
def test_nearly_every_code_cell_shows_something(source):
    code = [cell for cell in notebook(source)["cells"] if cell["cell_type"] == "code"]
    silent = [cell["source"] for cell in code if not cell["outputs"]]
    assert len(silent) <= 1  # the imports


@each_source
def test_pictures_are_pictures_and_small(source):
    pictures = [o["data"]["image/png"] for o in outputs(source) if "image/png" in o.get("data", {})]
    assert pictures
    assert all(base64.b64decode(p).startswith(b"\x89PNG") for p in pictures)
    assert source.with_suffix(".ipynb").stat().st_size < MAX_SIZE


@each_source
def test_outputs_name_no_path_of_a_machine(source):
    printed = "".join(concat(output.get("text", "")) for output in outputs(source))
    assert not re.search(r"(?:^|[\s'\"(])/\w+/\w+|[A-Z]:\\|0x[0-9a-f]{6,}", printed)


@each_source
def test_few_code_cells(source):
    parts = cells(source.read_text(encoding="utf-8"))
    assert sum(cell.kind == "code" for cell in parts) <= MAX_CODE_CELLS


@each_source
def test_opens_with_a_question_and_equations(source):
    first, *_ = cells(source.read_text(encoding="utf-8"))
    assert first.kind == "markdown"
    assert re.match(rf"# {int(source.name[:2])} · .*\?", first.text)
    assert "$$" in first.text


@each_source
def test_ends_with_what_would_make_it_wrong_and_an_exercise(source):
    headings = re.findall(r"^## (.*)", text_of(source), flags=re.MULTILINE)
    assert headings[-2:] == ["What would make this wrong", "Exercise"]
    *_, exercise = text_of(source).split("## Exercise")
    assert "**Answer.**" in exercise


@each_source
def test_tables_hold_no_stray_bar(source):
    """A | inside a formula or code ends the cell of a table; write \\mid."""
    for table in re.findall(r"(?:^\|.*\n?)+", text_of(source), flags=re.MULTILINE):
        rows = table.strip().splitlines()
        assert len({row.count("|") for row in rows}) == 1, rows


PAGES = [*SOURCES, FOLDER / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_resolve_within_the_repository(page):
    text = page.read_text(encoding="utf-8") if page.suffix == ".md" else text_of(page)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if not link.startswith(("http://", "https://")):
            target = (page.parent / link.split("#")[0]).resolve()
            assert target.is_relative_to(ROOT), link
            assert target.exists(), link


def test_the_list_of_tutorials_names_each():
    listed = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert listed == [path.with_suffix(".ipynb").name for path in SOURCES]


def test_cells_reads_percent_format():
    source = "# %% [markdown]\n# # A title\n#\n# text\n\n# %%\nx = 1\n\n\n# %%\n# a comment\nx\n"
    assert cells(source) == [
        Cell("markdown", "# A title\n\ntext"),
        Cell("code", "x = 1"),
        Cell("code", "# a comment\nx"),
    ]


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("import os\n# %%\nx = 1\n", "starts with 'import os"),
        ("# %% [markdown]\nno comment\n", "has the line 'no comment'"),
    ],
)
def test_cells_refuses_texts_that_are_not_in_percent_format(source, match):
    with pytest.raises(ValueError, match=match):
        cells(source)


@each_source
def test_jupytext_reads_the_same_cells(source):
    jupytext = pytest.importorskip("jupytext", reason="needs the extra `tutorials`")
    read = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    assert [Cell(c.cell_type, c.source) for c in read.cells] == cells(source.read_text("utf-8"))
