"""README: its Python blocks run, and its length and set-up commands are as promised."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_blocks_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert BLOCKS
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)
    assert capsys.readouterr().out.strip()


def test_length():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize(
    "command", ["pip install . && pyrovae fit", "pip install '.[test]' && pytest"]
)
def test_each_set_up_command_is_a_line(command):
    assert command in README.splitlines()
