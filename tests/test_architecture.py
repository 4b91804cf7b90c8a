"""The import structure: each file imports only from layers below its own, without cycles."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyrovae
from pyrovae import protocols
from pyrovae.runtime.ambient import exclusive

PACKAGE = Path(pyrovae.__file__).parent

# lowest first; a family's own files may import each other
LAYERS = [
    {"errors", "_version", "protocols", "images"},
    {"checks"},
    {"runtime"},
    {"handlers", "loggers"},
    {"heads"},
    {"densities", "networks"},
    {"priors", "guides", "likelihoods"},
    {"data"},
    {"contract"},
    {"vae"},
    {"programs", "builder"},
    {"model_file", "part_file"},
    {"core"},
    {"objectives", "evidence"},
    {"posterior"},
    {"diagnostics"},
    {"history"},
    {"training"},
    {"arviz_io", "plots", "datasets", "sklearn"},
    {"report"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """The file's name, or its family's for a file in a sub-package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_units(path: Path) -> set[str]:
    """Units of pyrovae that a file imports, anywhere but under TYPE_CHECKING and in doctests."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyrovae"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("pyrovae.")}
    return found & LEVEL.keys()


def test_every_file_has_a_layer():
    assert {unit(path) for path in FILES} == LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    here = unit(path)
    if here == "__init__":
        pytest.skip("the top level names everything, lazily")
    above = {n for n in imported_units(path) - {here} if LEVEL[n] >= LEVEL[here]}
    assert not above, f"{here} (layer {LEVEL[here]}) imports {above} from its own layer or above"


def test_runtime_knows_no_density_and_no_program():
    """It would serve any torch module."""
    below = {"errors", "_version", "protocols", "images", "checks", "runtime"}
    for path in (PACKAGE / "runtime").glob("*.py"):
        assert imported_units(path) <= below, path
        names = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
        assert "distributions" not in {node.attr for node in names}, path
        assert "distributions" not in path.read_text().partition('"""\n\n')[2], path


def test_the_vae_names_no_part_family():
    """The proof that a part needs no registration."""
    assert not imported_units(PACKAGE / "vae.py") & {"priors", "guides", "likelihoods"}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [("matplotlib", {"plots", "report"}), ("arviz", {"arviz_io"}), ("xarray", {"arviz_io", "cli"})],
)
def test_heavy_libraries_stay_in_their_files(module, allowed):
    users = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == module for name in names):
                users.add(unit(path))
    assert users <= allowed


@pytest.mark.parametrize("module", ["pyrovae", "pyrovae.cli"])
def test_import_is_light(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'pyro') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# one process for all: importing torch and pyro takes it seconds
LATE = """
import importlib, pkgutil, sys
import pyro.distributions as dist, torch
import pyrovae as pv
import pyrovae.training

loaded = {name.split(".")[1] for name in sys.modules if name.startswith("pyrovae.")}
print(sorted(loaded & {"priors", "guides", "likelihoods"}))


def come_with(action, *names):
    before = set(sys.modules)
    action()
    print(sorted(set(names) & (set(sys.modules) - before)))


def short_run():  # torch's optimizers import some of torch._inductor, but not what compiles
    vae = pv.build((4,), latent_dim=2, hidden=(8,), seed=0)
    assert pv.fit(vae, torch.ones(10, 4), epochs=2).engine == "eager"


def flow():  # importing zuko sets Distribution._validate_args to False
    validates = torch.distributions.Distribution._validate_args
    pv.priors.FlowPrior(2)
    assert torch.distributions.Distribution._validate_args is validates is True
    try:
        dist.Normal(0.0, -1.0)
    except ValueError:
        return
    raise AssertionError("no longer validated")


come_with(lambda: importlib.import_module("pyrovae.datasets"), "sklearn", "pooch", "requests")
come_with(lambda: importlib.import_module("pyrovae.arviz_io"), "arviz", "xarray")
come_with(lambda: (pv.priors.FlowPrior, pv.guides.FlowGuide), "zuko")
come_with(short_run, "torch._inductor.compile_fx")
come_with(flow, "zuko")  # the negative control
for module in pkgutil.iter_modules(pv.__path__):
    if module.name != "__main__":
        importlib.import_module("pyrovae." + module.name)
print(all(map(callable, (pv.build, pv.fit, pv.log_evidence))))  # no submodule hides a function
"""


def test_heavy_libraries_and_part_families_are_imported_when_first_needed():
    """Training loads no family of parts, nor does anything that it imports."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert done.stdout.split("\n") == [*["[]"] * 5, "['zuko']", "True", ""], done.stderr


def test_every_public_name_exists_and_is_documented():
    for name in pyrovae.__all__:
        assert getattr(pyrovae, name).__doc__, name


FAMILIES = [
    "datasets",
    "diagnostics",
    "evidence",
    "guides",
    "likelihoods",
    "networks",
    "objectives",
    "plots",
    "posterior",
    "priors",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_public_docstring_has_an_example(family):
    module = getattr(pyrovae, family)
    for name in getattr(module, "__all__", []):
        thing = getattr(module, name)
        is_record = isinstance(thing, type) and issubclass(thing, tuple)
        if callable(thing) and not is_record:
            assert ">>>" in (thing.__doc__ or ""), f"{family}.{name}"


def test_every_method_of_the_vae_has_an_example():
    for name in ("model", "loss", "loss_terms", "encode", "decode", "reconstruct", "sample"):
        assert ">>>" in getattr(pyrovae.VAE, name).__doc__, name


HOOKS = [h for h in vars(protocols).values() if getattr(h, "__module__", "") == protocols.__name__]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_every_hook_is_used_where_its_docstring_says(hook):
    names = {*inspect.get_annotations(hook), *(n for n in vars(hook) if not n.startswith("_"))}
    users = LEVEL.keys() & set(re.findall(r"\w+", hook.__doc__.partition("Used by:")[2]))
    assert users, hook
    for user in users:
        text = "".join(path.read_text() for path in FILES if unit(path) == user)
        assert any(re.search(rf"\b{name}\b", text) for name in names), (hook, user)


def test_every_reading_of_a_program_holds_the_turn():
    """Otherwise another thread could change what it sees; runs give their turn away instead."""
    wrapper = exclusive(lambda: None).__code__
    held = (pyrovae, pyrovae.diagnostics, pyrovae.evidence, pyrovae.posterior)
    functions = {n: getattr(module, n) for module in held for n in module.__all__}
    readings = {n for n, f in functions.items() if inspect.isfunction(f) and _takes_program(f)}
    assert len(readings) > 20
    runs = {"fit", "refit_prior", "write_report"}
    assert {n for n in readings if functions[n].__code__ is not wrapper} == runs


def _takes_program(function):
    return next(iter(inspect.signature(function).parameters)) in ("program", "vae")


def test_no_generator_holds_a_context_while_it_waits():
    """A context of this process would last as long as the caller keeps the generator."""
    for path in FILES:
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            blocks = [node for node in ast.walk(function) if isinstance(node, ast.With)]
            waits = any(isinstance(n, ast.Yield) for block in blocks for n in ast.walk(block))
            is_context = "contextmanager" in map(ast.unparse, function.decorator_list)
            assert not waits or is_context, (path, function.name)


def test_no_pickle_anywhere():
    banned = ("pickle", "cloudpickle", "dill", "joblib")
    for path in FILES:
        tree = ast.parse(path.read_text())
        calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in imports for alias in node.names}
        names |= {getattr(node, "module", None) for node in imports}
        assert not names & set(banned), path
        assert not [c for c in calls if c.startswith(("torch.load(", "eval(", "exec("))], path
        assert not [c for c in calls if "allow_pickle=True" in c], path
