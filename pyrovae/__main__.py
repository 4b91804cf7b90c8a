"""`python -m pyrovae` is the `pyrovae` command."""

from pyrovae.cli import app

if __name__ == "__main__":
    app(prog_name="pyrovae")
