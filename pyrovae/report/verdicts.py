"""Verdicts on the findings, each with its number, its error and what to do.

    problem   the condition holds
    look      there is some of it, or it cannot be excluded; common in useful models
    fine      no sign of it, and a problem is excluded
    unknown   could not be judged, and why

`levels` has the test between the three and its error rate, `faults` what is wrong with a model,
`limits` what its inference cannot do. Unfinished training hides other faults: while weights still
move, inactive latents, β̂ and p(x|z) are not final, so these become unknown.
"""

from pyrovae.report import faults, limits
from pyrovae.report.findings import Findings
from pyrovae.report.levels import Verdict

LATER = (faults.posterior_collapse, faults.guide_too_narrow, faults.wrong_likelihood)
LIMITS = (
    limits.evidence,
    limits.encoder_coverage,
    limits.inference_gap,
    limits.prior_misfit,
    limits.calibrated,
)


def verdicts(found: Findings, *, beta: float | None = None) -> tuple[Verdict, ...]:
    """Return one verdict per condition, faults first; `beta` is only reported."""
    first = faults.undertrained(found)
    collapse, *rest = (judge(found) for judge in LATER)
    later = (collapse, faults.over_regularized(found, beta=beta), *rest)
    if first.status == "problem":
        later = tuple(map(_unripe, later))
    return (first, *later, faults.overfitting(found), *(judge(found) for judge in LIMITS))


def _unripe(verdict: Verdict) -> Verdict:
    if verdict.status == "unknown":
        return verdict
    meaning = "Not judged while training is unfinished: this number will change."
    return Verdict(verdict.name, "unknown", verdict.number, meaning)


def problems(judged: tuple[Verdict, ...]) -> tuple[str, ...]:
    """Return the names of the faults that are problems."""
    return tuple(v.name for v in judged if v.status == "problem" and v.name not in limits.NAMES)
