"""One self-contained HTML page about a run: what it is, whether to trust it, how to reproduce it.

Pictures are data URIs and the style is inline: no script, no font, no network.
"""

import base64
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from torch import nn

from pyrovae.contract.program import trace_once
from pyrovae.core.draws import diagnosing
from pyrovae.core.replay import sites_of
from pyrovae.core.terms import bound_on
from pyrovae.data import Batch
from pyrovae.diagnostics import Decomposition
from pyrovae.history import History
from pyrovae.report import TERMS
from pyrovae.report.figures import Picture, worst_data
from pyrovae.report.findings import Findings
from pyrovae.report.levels import NUM_ERRORS, Verdict
from pyrovae.report.limits import mean_evidence
from pyrovae.report.trust import Trust, trust
from pyrovae.report.verdicts import problems
from pyrovae.vae import is_plain_vae

NUM_DRAWS = 10  # of `decompose_elbo`
HEADLINES = {
    "yes": "May be trusted",
    "with care": "With care",
    "no": "Not to be trusted",
    "not judged": "Not judged",
}
MARKS = {"fine": "✓ fine", "look": "! worth a look", "problem": "✗ problem", "unknown": "? unknown"}


class About(NamedTuple):
    """What a page says about a run besides the findings.

    Attributes:
        title: of the page.
        training: how the model was trained, in sentences.
        terms: (training, held out) → name in `TERMS` → value and std_error.
        num_samples: draws of z per datum behind the terms.
        facts: what the numbers depend on, name → value.
        beta: weight of the KL in training.
        network: of a built model, in words.
        commands: that reproduce and check the run, if there are any.
    """

    title: str
    training: str
    terms: tuple[dict[str, Any] | None, dict[str, Any]]
    num_samples: int
    facts: dict[str, str]
    beta: float = 1.0
    network: str = ""
    commands: tuple[str, ...] = ()


def of_card(card: dict[str, Any], folder: str) -> About:
    """Return what the card of a run says; `folder` is for the command that checks it."""
    return About(
        title=f"VAE on {card['data']}",
        training=_training(card),
        terms=(card["training"], card["held_out"]),
        num_samples=card["num_samples"],
        facts=_facts(card),
        beta=card["settings"]["beta"],
        network=_network(card["spec"]),
        commands=(card["command"], f"pyrovae verify {folder}"),
    )


def of_findings(
    program: nn.Module, found: Findings, history: History | None, *, facts: dict[str, str]
) -> About:
    """Return what is known of a program without a card."""
    trained = "How the model was trained is not recorded here: pass history=."
    if history is not None:
        data = f" on {history.num_data:,} training data" if history.num_data else ""
        trained = f"{len(history)} epochs{data}."
    sides = (found.training, found.held_out)
    return About(
        title=f"{type(program).__name__}",
        training=f"{trained} Held out: {found.data.num_data:,} data points.",
        terms=tuple(None if side is None else _means(side) for side in sides),
        num_samples=NUM_DRAWS,
        facts=facts,
    )


def _means(found: Decomposition) -> dict[str, Any]:
    return {name: getattr(found, f"mean_{name}")._asdict() for name in TERMS}


def render(
    about: About,
    program: nn.Module,
    *,
    found: Findings,
    judged: tuple[Verdict, ...],
    pictures: dict[str, list[Picture]],
    footer: str = "",
) -> str:
    """Return the page as HTML; `pictures` by section."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"data_uri": _data_uri, "minus": _with_minus}
    source = files("pyrovae.report").joinpath("template.html").read_text(encoding="utf-8")
    template = environment.from_string(source)
    of_what = bound_on(*trace_once(program, *found.data.head())).removeprefix("log p(x)")
    return template.render(
        about=about,
        is_vae=is_plain_vae(program),
        summary=_summary(found, judged, of_what),
        of_what=of_what,
        structure="" if is_plain_vae(program) else _structure(program, found.data),
        parts=_parts(program),
        terms=_terms(about),
        verdicts=judged,
        uses=trust(judged),
        marks=MARKS,
        belief_text=_belief(found),
        failure_text=_failures(found),
        worst=worst_data(found),
        pictures=pictures,
        footer=footer,
    )


def _data_uri(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode('ascii')}"


def _with_minus(text: str) -> str:
    """Write negative numbers with a minus sign; hyphens in words stay."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def _summary(found: Findings, judged: tuple[Verdict, ...], of_what: str) -> str:
    named = ", ".join(problems(judged))
    sentences = [f"Something is wrong with this model: {named}." if named else ""]
    uses = trust(judged)
    for answer, words in HEADLINES.items():
        chosen = "; ".join(_with_reasons(use) for use in uses if use.answer == answer)
        sentences.append(f"{words}: {chosen}." if chosen else "")
    mean, error, num_bounds = mean_evidence(found)
    sign = "≥" if num_bounds else "="
    sentences.append(
        f"Held-out data have log p(x){of_what} {sign} {mean:.2f} ± {error:.2f} nats on average."
    )
    return " ".join(filter(None, sentences))


def _with_reasons(use: Trust) -> str:
    """Return a use, with the conditions that speak against it."""
    names = ", ".join(verdict.name for verdict in use.reasons)
    return f"{use.use} ({names})" if names else use.use


ROLES = {"prior": "prior p(z)", "encoder": "encoder q(z|x)", "decoder": "decoder p(x|z)"}


def _structure(program: nn.Module, data: Batch) -> str:
    """Return the first line of a program's docstring, and the names of its sites."""
    with diagnosing(program, 0):
        sites = sites_of(program, data)
    kinds = {
        "Latents of a datum": [name for name in sites.latents if name not in sites.shared],
        "latents that all data share": sites.shared,
        "summed out exactly": sites.summed,
        "observed": sites.observed,
    }
    named = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
    return f"{_meaning(type(program))} {named}."


def _meaning(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _parts(program: nn.Module) -> list[dict[str, Any]]:
    rows = []
    for name, part in _named_parts(program):
        role = ROLES.get(name, name) if is_plain_vae(program) else name
        density = type(list(part.children())[-1] if isinstance(part, nn.Sequential) else part)
        meaning = _meaning(density)
        size = sum(p.numel() for p in part.parameters())
        row = {"role": role, "name": density.__name__, "meaning": meaning, "num_parameters": size}
        rows.append(row)
    return rows


def _named_parts(program: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a program, those in a ModuleDict or ModuleList one by one."""
    for name, part in program.named_children():
        if isinstance(part, nn.ModuleDict | nn.ModuleList):
            yield from ((f"{name} {key}", one) for key, one in part.named_children())
        else:
            yield name, part


def _network(spec: dict[str, Any]) -> str:
    network, length = spec["network"], spec["latent_dim"]
    name = network if isinstance(network, str) else network.get("name", "")
    widths = ", ".join(map(str, spec["hidden"]))
    return f"{name} with hidden widths {widths}, reversed for decoding; z has length {length}"


def _terms(about: About) -> list[dict[str, Any]]:
    def text(side: dict[str, Any] | None, key: str) -> str:
        return "–" if side is None else f"{side[key]['value']:.2f} ± {side[key]['std_error']:.2f}"

    return [
        {"name": name, "numbers": [text(side, key) for side in about.terms]}
        for key, name in TERMS.items()
    ]


def _training(card: dict[str, Any]) -> str:
    settings, epochs = card["settings"], len(card["history"])
    kept = ""
    if card["history"] and card["history"][-1]["validation_elbo"] is not None:
        kept = f" The weights are those of epoch {card['best_epoch']}, the best validation ELBO."
    return (
        f"{epochs} epochs of Adam at learning rate {settings['learning_rate']:g}, "
        f"batch size {settings['batch_size']}, {card['training']['num_data']:,} training data."
        f"{kept} Pixels: {card['pixels']}. Held out: {card['held_out_is']}, "
        f"{card['held_out']['num_data']:,} data points."
    )


def _belief(found: Findings) -> str:
    total = found.data.num_data
    return (
        f"Each verdict is a test of the number beside it, from {total:,} held-out data points, at "
        f"{NUM_ERRORS:g} of the standard errors shown: where it says “problem” or “fine”, it is "
        "wrong for about one model in 700. “Look” means that there is some of it, or that it "
        "cannot be excluded."
    )


def _failures(found: Findings) -> str:
    num_bounds, total = mean_evidence(found)[2], found.data.num_data
    if not num_bounds:
        return "Each log p(x) has a 95 % interval; k̂ is that of q(z|x), which they do not need."
    return (
        f"For {num_bounds:,} of {total:,} data points only a lower bound of log p(x) is known (≥), "
        "so some may not belong here; k̂ is that of q(z|x)."
    )


def _facts(card: dict[str, Any]) -> dict[str, str]:
    hashes = card["data_sha256"]
    return {
        "seed": str(card["seed"]),
        "versions": ", ".join(f"{name} {number}" for name, number in card["versions"].items()),
        **{f"{part} data, SHA-256": value for part, value in hashes.items() if value},
        "model, SHA-256": card["model_sha256"],
        "duration": f"{card['seconds']:.0f} s",
    }
