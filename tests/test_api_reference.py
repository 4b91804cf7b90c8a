"""The API reference: built by the README's command, every link resolves, every name is there."""

import html.parser
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pyrovae as pv
from pyrovae.densities import flows

ROOT = Path(__file__).parent.parent
pytest.importorskip("pdoc", reason="needs pyrovae[docs]")


class Page(html.parser.HTMLParser):
    """The ids, the links and the number of tables of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.num_tables = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.num_tables += tag == "table"
        self.ids |= {found["id"]} if found.get("id") else set()
        self.links |= {found["href"]} if tag == "a" and found.get("href") else set()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"`pip install '\.\[docs\]' && (pdoc [^`]*)`", readme)
    assert command, "README.md names the command that builds the reference"
    words = shlex.split(command[1])
    words[words.index("-o") + 1] = str(out := tmp_path_factory.mktemp("reference"))
    # coloring the source takes half of the time, the index of the search a tenth
    words += ["--no-show-source", "--no-search"]
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, capture_output=True)
    return {path.resolve(): Page(path) for path in out.rglob("*.html")}


def test_no_link_is_broken(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if re.match("https?:", link):
                continue
            name, _, fragment = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            is_there = target in pages and (not fragment or fragment in pages[target].ids)
            broken += [] if is_there else [f"{path.name}: {link}"]
    assert not broken


def test_every_public_name_has_an_entry(pages):
    by_name = {path.stem: page.ids for path, page in pages.items()}
    modules = [name for name in pv.__all__ if name in by_name]
    names = [name for name in pv.__all__ if name not in modules]
    assert not [name for name in names if name not in by_name["pyrovae"]]
    for module in modules:
        public = getattr(pv, module).__all__ if hasattr(getattr(pv, module), "__all__") else []
        assert not [name for name in public if name not in by_name[module]], module
    for name in flows.__all__:
        assert name in by_name["flows"]
    assert "CountDecoder" in by_name["count_decoder"]


def test_the_table_of_programs_and_methods_is_shown(pages):
    (page,) = (page for path, page in pages.items() if path.stem == "programs")
    assert page.num_tables >= 5
