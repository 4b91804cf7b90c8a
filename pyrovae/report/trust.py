"""What a model may be used for, from the verdicts on it.

A use depends on some of the conditions. It is as trustworthy as the worst of these allows:

    yes          all are fine
    with care    one is worth a look
    no           one is a problem
    not judged   one is unknown, and none is worth a look or a problem
"""

from typing import NamedTuple

from pyrovae.report.levels import Verdict

USES = {
    "samples": (
        "undertrained",
        "posterior collapse",
        "over-regularized",
        "guide too narrow",
        "wrong likelihood",
        "prior misfit",
    ),
    "log p(x)": ("log p(x)",),
    "q(z|x) as a posterior": (
        "undertrained",
        "posterior collapse",
        "over-regularized",
        "guide too narrow",
        "encoder misses posteriors",
        "inference gap",
        "calibration",
    ),
    "comparisons with other models": ("undertrained", "overfitting", "log p(x)"),
}
ANSWERS = {
    "problem": "no",
    "look": "with care",
    "unknown": "not judged",
    "fine": "yes",
}  # worst 1st


class Trust(NamedTuple):
    """Whether one use of a model can be trusted.

    Attributes:
        use: such as "samples".
        answer: "yes", "with care", "no" or "not judged".
        reasons: the verdicts that decide, all of that status; empty for "yes".
    """

    use: str
    answer: str
    reasons: tuple[Verdict, ...]


def trust(judged: tuple[Verdict, ...]) -> tuple[Trust, ...]:
    """Return whether each use of a model can be trusted, in the order of `USES`."""
    return tuple(_of_use(use, names, judged) for use, names in USES.items())


def _of_use(use: str, names: tuple[str, ...], judged: tuple[Verdict, ...]) -> Trust:
    on = [verdict for verdict in judged if verdict.name in names]
    status = next(s for s in ANSWERS if any(v.status == s for v in on))
    reasons = () if status == "fine" else tuple(v for v in on if v.status == status)
    return Trust(use, ANSWERS[status], reasons)
