"""Limits of a model's inference, common in useful models: what not to use it for.

    log p(x)                    data for which only a lower bound is known
    encoder misses posteriors   data with k̂ of the guide above its threshold
    inference gap               log p(x) − ELBO, of the guide family and of the encoder
    prior misfit                what a mixture fitted to the codes gains in ELBO
    calibration                 how often 90 % regions of q(z|x) contain the truth

A limit at its third level is a problem for one use of the model (`report.trust`), not a fault.
"""

import math

from pyrovae.diagnostics import Estimate
from pyrovae.report.findings import Findings
from pyrovae.report.levels import Verdict, exceeds, level, with_error

NAMES = (
    "log p(x)",
    "encoder misses posteriors",
    "inference gap",
    "prior misfit",
    "calibration",
)
BOUND_SHARE = (0.0, 0.5)  # of the data without an interval for log p(x): look, problem
FAILED_SHARE = (0.05, 0.5)  # of the data with k̂ above its threshold
GAP = (0.5, math.inf)  # nats that an encoder may lose
MISFIT = (0.5, math.inf)  # nats that another prior gains
REGION = 0.9  # nominal probability of the regions that are judged
MISSED = 0.1  # of the truth, more than a region should miss: twice as many
SATURATED = 1.0  # nats below its bound log N at which mutual information says nothing


def evidence(found: Findings) -> Verdict:
    """Judge for how many data the estimate of log p(x) is one, with an interval."""
    name, (mean, error, num_bounds) = "log p(x)", mean_evidence(found)
    total = len(found.evidence.log_px)
    sign = "≥ " if num_bounds else ""
    number = f"{sign}{mean:.2f} ± {error:.2f} nats on average, ± over data"
    look, problem = BOUND_SHARE
    if num_bounds <= look * total:
        return Verdict(name, "fine", number, f"All {total:,} data have an interval for log p(x).")
    status = "problem" if num_bounds > problem * total else "look"
    meaning = f"For {num_bounds:,} of {total:,} data only a lower bound is known."
    return Verdict(name, status, number, meaning, "Neither refined guides nor AIS reached them.")


def mean_evidence(found: Findings) -> tuple[float, float, int]:
    """Return the mean log p(x), its error over data, and the number of mere bounds in it."""
    log_px = found.evidence.log_px
    error = log_px.std().item() / math.sqrt(len(log_px))
    return log_px.mean().item(), error, int(found.evidence.upper.isinf().sum())


def encoder_coverage(found: Findings) -> Verdict:
    """Judge how many data points have importance weights with too heavy a tail."""
    name, failed = "encoder misses posteriors", ~found.reliability.is_reliable
    share = failed.double().mean().item()
    number = Estimate(share, math.sqrt(share * (1 - share) / len(failed)))
    look, problem = FAILED_SHARE
    status = level(number, look=look, problem=problem)
    text = (
        f"{100 * share:.1f} ± {100 * number.std_error:.1f} % of data with k̂ > "
        f"{found.reliability.threshold:.2f}"
    )
    if status == "fine":
        return Verdict(name, status, text, "Importance weights of q(z|x) are reliable for most.")
    meaning = "For these data importance weights of q(z|x) are not reliable: it misses posteriors."
    bounds = int(found.evidence.upper[failed.to(found.evidence.upper.device)].isinf().sum())
    left = f"all but {bounds:,} of them" if bounds else "all of them"
    advice = f"log_evidence(method='auto') gave an interval for {left}, by other methods."
    return Verdict(name, status, text, meaning, advice)


def inference_gap(found: Findings) -> Verdict:
    """Judge how far the ELBO is below log p(x), and whether family or encoder is the cause."""
    name, gaps = "inference gap", found.gaps
    if gaps is None:
        meaning = "Not measured: only a guide with declared parameters can be refined."
        return Verdict(name, "unknown", "", meaning)
    parts = [gaps.mean_approximation, gaps.mean_amortization]
    # of rounded parts, so that they sum to it on the page
    total = gaps.mean_total._replace(value=sum(round(part.value, 2) for part in parts))
    family, encoder = (f"{part.value:.2f} ± {part.std_error:.2f}" for part in parts)
    number = (
        f"{total.value:.2f} ± {total.std_error:.2f} nats = {family} (guide family) + {encoder} "
        "(encoder)"
    )
    is_bound = found.evidence.upper[: len(gaps.elbo)].isinf()
    at_least = "at least " if bool(is_bound.any()) else ""
    meaning = f"The ELBO is {at_least}this much below log p(x), on {len(gaps.elbo)} of the data."
    look, problem = GAP
    status = level(total, look=look, problem=problem)
    return Verdict(name, status, number, meaning, _of_gap(*parts) if status == "look" else "")


def _of_gap(family: Estimate, encoder: Estimate) -> str:
    """Return what refining the guide for each datum has recovered."""
    error = math.hypot(family.std_error, encoder.std_error)
    refined = f"Refining q for each datum (posterior.refine) recovered {with_error(encoder)} nats"
    if exceeds(Estimate(encoder.value - family.value, error), 0.0):
        return f"{refined}, most of the gap; a larger encoder was not tried."
    if exceeds(Estimate(family.value - encoder.value, error), 0.0):
        return f"{refined} only; a richer family, such as FullNormal or FlowGuide, was not tried."
    return f"{refined}; guide family and encoder cost about the same."


def prior_misfit(found: Findings) -> Verdict:
    """Judge what another prior would gain, or how far the codes of all data are from the prior."""
    name, gain, misfit = "prior misfit", found.prior_gain, found.held_out.marginal_kl
    if gain is None and math.isnan(misfit.value):
        return Verdict(name, "unknown", "", "The data do not share one prior.")
    if gain is None and _is_saturated(found):
        return Verdict(name, "unknown", "", "So few data say little on the density of all codes.")
    number = f"KL(q(z) ‖ p(z)) = {with_error(misfit)} nats"
    if gain is not None:
        number = (
            f"a mixture fitted to the codes gains {gain.value:+.2f} ± {gain.std_error:.2f} nats of "
            "held-out ELBO"
        )
    look, problem = MISFIT
    size = misfit if gain is None else gain
    status = level(size, look=look, problem=problem)
    if status == "look":
        meaning = "The codes leave parts of the prior empty, so some samples look like no data."
        advice = "" if gain is None else "refit_prior with a GaussianMixture gained this much."
        return Verdict(name, status, number, meaning, advice)
    meaning = "The codes of all data together fill the prior, as far as this shows."
    return Verdict(name, status, number, meaning)


def _is_saturated(found: Findings) -> bool:
    """Return whether mutual information is near log N, and so the marginal KL is too large."""
    bound = math.log(found.data.num_data)
    return found.held_out.mutual_information.value > bound - SATURATED


def calibrated(found: Findings) -> Verdict:
    """Judge whether posteriors of simulated data contain the truth as often as they should."""
    name, made = "calibration", found.calibration
    if made is None:
        return Verdict(name, "unknown", "", "Not measured for these latents.")
    index = int((made.coverage_levels - REGION).abs().argmin())
    held, error = made.expected_coverage[index].item(), made.coverage_std_error[index].item()
    nominal = made.coverage_levels[index].item()
    number = (
        f"{100 * nominal:.0f} % regions of q(z|x) contain the truth in {100 * held:.1f} ± "
        f"{100 * error:.1f} % of simulations"
    )
    status = level(Estimate(abs(held - nominal), error), look=0.0, problem=MISSED)
    if exceeds(Estimate(abs(held - nominal), error), 0.0):
        side = "miss the truth too often" if held < nominal else "are wider than they promise"
        meaning = f"On data simulated by the model, regions of q(z|x) {side}."
        return Verdict(name, status, number, meaning, "Do not read its widths as uncertainty.")
    if status == "look":
        return Verdict(name, status, number, "So few simulations do not show whether they hold.")
    meaning = "On data simulated by the model, these regions hold what they promise."
    return Verdict(name, status, number, meaning)
