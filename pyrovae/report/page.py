"""One self-contained HTML page about a run: what it is, whether to trust it, how to reproduce it.

Pictures are data URIs and the style is inline: no script, no font, no network.
"""

import base64
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from pyrovae.contract.program import trace_once
from pyrovae.core.terms import bound_on
from pyrovae.report import TERMS
from pyrovae.report.figures import Picture, worst_data
from pyrovae.report.findings import Findings
from pyrovae.report.verdicts import Verdict, problems

MARKS = {"fine": "✓ fine", "look": "! worth a look", "problem": "✗ problem", "unknown": "? unknown"}


def render(
    card: dict[str, Any],
    vae: Any,
    *,
    found: Findings,
    judged: tuple[Verdict, ...],
    pictures: dict[str, list[Picture]],
    folder: str,
    footer: str = "",
) -> str:
    """Return the page as HTML; `pictures` by section, `folder` for the command that checks it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"data_uri": _data_uri, "minus": _with_minus}
    source = files("pyrovae.report").joinpath("template.html").read_text(encoding="utf-8")
    template = environment.from_string(source)
    of_what = bound_on(*trace_once(vae, found.x[:1])).removeprefix("log p(x)")
    return template.render(
        title=f"VAE on {card['data']}",
        summary=_summary(found, judged, of_what),
        of_what=of_what,
        beta=card["settings"]["beta"],
        parts=_parts(vae),
        spec_text=_network(card["spec"]),
        terms=_terms(card),
        num_samples=card["num_samples"],
        training_text=_training(card),
        verdicts=judged,
        marks=MARKS,
        belief_text=_belief(found),
        failure_text=_failures(found),
        worst=worst_data(found),
        pictures=pictures,
        command=card["command"],
        folder=folder,
        facts=_facts(card),
        footer=footer,
    )


def _data_uri(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode('ascii')}"


def _with_minus(text: str) -> str:
    """Write negative numbers with a minus sign; hyphens in words stay."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def _summary(found: Findings, judged: tuple[Verdict, ...], of_what: str) -> str:
    named = ", ".join(problems(judged))
    looks = ", ".join(verdict.name for verdict in judged if verdict.status == "look")
    log_px = found.evidence.log_px
    mean, error = log_px.mean().item(), log_px.std().item() / len(log_px) ** 0.5
    sentences = (
        f"Something is wrong with this model: {named}."
        if named
        else "No sign of a problem with this model.",
        f"Worth a look: {looks}." if looks else "",
        f"Held-out data have log p(x){of_what} = {mean:.2f} ± {error:.2f} nats on average.",
    )
    return " ".join(filter(None, sentences))


def _parts(vae: Any) -> list[dict[str, Any]]:
    parts = {"prior p(z)": vae.prior, "encoder q(z|x)": vae.encoder, "decoder p(x|z)": vae.decoder}
    rows = []
    for role, part in parts.items():
        density = type(part if part is vae.prior else list(part.children())[-1])
        meaning = (density.__doc__ or "").strip().partition("\n")[0]
        size = sum(p.numel() for p in part.parameters())
        row = {"role": role, "name": density.__name__, "meaning": meaning, "num_parameters": size}
        rows.append(row)
    return rows


def _network(spec: dict[str, Any]) -> str:
    network, length = spec["network"], spec["latent_dim"]
    name = network if isinstance(network, str) else network.get("name", "")
    widths = ", ".join(map(str, spec["hidden"]))
    return f"{name} with hidden widths {widths}, reversed for decoding; z has length {length}"


def _terms(card: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for key, name in TERMS.items():
        numbers = (card[part][key] for part in ("training", "held_out"))
        texts = [f"{n['value']:.2f} ± {n['std_error']:.2f}" for n in numbers]
        rows.append({"name": name, "numbers": texts})
    return rows


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
    return (
        f"Each diagnostic comes with the number that decides it, from {len(found.x):,} held-out "
        "data points, ± one standard error. A problem exceeds its threshold by three of them."
    )


def _failures(found: Findings) -> str:
    failed = int((found.evidence.pareto_k > found.pareto_threshold).sum())
    if not failed:
        return "Their log p(x) can be trusted: k̂ is below its threshold for all data."
    return (
        f"For {failed:,} of {len(found.x):,} data points k̂ is above {found.pareto_threshold:.2f}: "
        "their log p(x) is too low, and its error cannot be trusted."
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
