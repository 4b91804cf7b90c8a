"""Verdicts on the findings, each with its number, its error and what to do.

    problem   the condition holds, by more than three standard errors
    look      worth a look; common in useful models
    fine      no sign of it
    unknown   could not be judged, and why

Three conditions break a VAE as a whole, and are distinguished by name:

    undertrained        more steps gain more than a tenth of the spread of the data
    posterior collapse  every latent dimension ignores x, or the total KL is below 0.1 nats
    over-regularized    β̂ > 1.5: the encoder is optimal for more KL than the ELBO has

The first hides the others: while weights still move, inactive latents and β̂ are not final, so
these become unknown. The last needs active latents. Only the measurements decide; β from the
card, if known, is only reported. Thresholds are conventions, defined below.
"""

import math
from typing import NamedTuple

from pyrovae.diagnostics import Estimate
from pyrovae.report.findings import Findings

NUM_ERRORS = 3.0
UNDERTRAINED = 0.1  # of the standard deviation over data of the objective
COLLAPSED = 0.1  # total KL, nats
OVER_REGULARIZED = 1.5  # β̂
UNDER_REGULARIZED = 1 / OVER_REGULARIZED
OVERFITTED = 0.25  # of the standard deviation over data of the ELBO
FAILED_SHARE = 0.05  # share of the data with k̂ above its threshold
GAP = 0.5  # nats that an encoder may lose
MISFIT = 0.5  # nats that another prior could gain


class Verdict(NamedTuple):
    """One condition and whether a model has it."""

    name: str
    status: str  # "fine", "look", "problem" or "unknown"
    number: str  # the one that decides, with error and unit
    meaning: str
    advice: str = ""  # what to do


def verdicts(found: Findings, *, beta: float | None = None) -> tuple[Verdict, ...]:
    """Return one verdict per condition, the most serious first; `beta` is only reported."""
    first = undertrained(found)
    rest = (overfitting, encoder_coverage, inference_gap, prior_misfit, calibrated)
    later = (posterior_collapse(found), over_regularized(found, beta=beta))
    if first.status == "problem":
        meaning = "Not judged while training is unfinished: this number will change."
        later = tuple(
            v if v.status == "unknown" else Verdict(v.name, "unknown", v.number, meaning)
            for v in later
        )
    return (first, *later, *(judge(found) for judge in rest))


def problems(judged: tuple[Verdict, ...]) -> tuple[str, ...]:
    """Return the names of the conditions that are problems."""
    return tuple(verdict.name for verdict in judged if verdict.status == "problem")


def undertrained(found: Findings) -> Verdict:
    """Judge whether more training would still gain much on held-out data."""
    name, more = "undertrained", found.continued
    if more is None:
        meaning = "A copy of the model could not be trained further."
        if found.training is None:
            meaning = "Not judged: the training data were not given."
        return Verdict(name, "unknown", "", meaning)
    gain = more.gain
    number = f"{gain.value:+.2f} ± {gain.std_error:.2f} nats per datum in {more.num_steps} steps"
    excess = gain.value - UNDERTRAINED * more.spread
    if excess > NUM_ERRORS * gain.std_error:
        meaning = (
            "Training ended too early: a copy trained further gained this much on held-out data, "
            f"{gain.value / more.spread:.2f} of their spread."
        )
        return Verdict(name, "problem", number, meaning, "First of all, train for more epochs.")
    meaning = "Training has converged: a copy trained further gained little on held-out data."
    return Verdict(name, "fine", number, meaning)


def posterior_collapse(found: Findings) -> Verdict:
    """Judge whether the decoder ignores z."""
    name = "posterior collapse"
    if found.collapse is None:
        return Verdict(name, "unknown", "", "The program has no latent of a single datum.")
    idle, total = found.collapse.collapsed, len(found.collapse.names)
    rate = found.held_out.mean_kl
    number = f"{len(idle)} of {total} latent dimensions inactive; KL {_with_error(rate)} nats"
    if _is_empty(found):
        meaning = (
            "The model ignores z: q(z|x) nearly equals the prior for every x, so codes are "
            "uninformative and all samples look alike."
        )
        advice = "Lower β, warm up the KL, use free bits, or weaken the decoder."
        return Verdict(name, "problem", number, meaning, advice)
    if idle:
        meaning = "Some latent dimensions are inactive; often the data do not need more."
        return Verdict(name, "fine", number, meaning, "A smaller latent dimension would do.")
    return Verdict(name, "fine", number, "Every latent dimension carries information about x.")


def over_regularized(found: Findings, *, beta: float | None = None) -> Verdict:
    """Judge whether the encoder weights the KL more than the ELBO does."""
    name, weight = "over-regularized", found.kl_weight
    note = "" if beta is None or beta == 1 else f" The card says that β was {beta:g}."
    if math.isnan(weight.value) or _is_empty(found):
        meaning = "Defined for a VAE with active latents on the real line." + note
        return Verdict(name, "unknown", "β of the encoder: not defined", meaning)
    number = f"β of the encoder = {_with_error(weight)}; the ELBO has 1"
    if weight.value - NUM_ERRORS * weight.std_error > OVER_REGULARIZED:
        meaning = (
            "The codes carry less information about x than the ELBO rewards: the encoder is "
            f"optimal for a KL weighted by {weight.value:.1f}.{note}"
        )
        advice = "Train with β = 1, or report it as a β-VAE, not as a density of x."
        return Verdict(name, "problem", number, meaning, advice)
    if weight.value + NUM_ERRORS * weight.std_error < UNDER_REGULARIZED:
        meaning = f"The KL was weighted less than in the ELBO: codes are too precise.{note}"
        return Verdict(name, "look", number, meaning, "Train with β = 1 if samples look wrong.")
    return Verdict(name, "fine", number, f"KL and reconstruction balance as in the ELBO.{note}")


def _is_empty(found: Findings) -> bool:
    """Return whether z carries no information about x."""
    rate = found.held_out.mean_kl
    is_silent = rate.value + NUM_ERRORS * rate.std_error < COLLAPSED
    return is_silent or (found.collapse is not None and bool(found.collapse.is_collapsed.all()))


def overfitting(found: Findings) -> Verdict:
    """Judge whether the ELBO of training data is far above that of held-out data."""
    if found.training is None:
        meaning = "Not judged: the training data were not given."
        return Verdict("overfitting", "unknown", "", meaning)
    name, ours, theirs = "overfitting", found.training.mean_elbo, found.held_out.mean_elbo
    gap, error = ours.value - theirs.value, math.hypot(ours.std_error, theirs.std_error)
    number = f"{gap:+.2f} ± {error:.2f} nats of training over held-out ELBO"
    excess = gap - OVERFITTED * found.held_out.elbo.std().item()
    if excess > NUM_ERRORS * error:
        meaning = "The model fits its training data much better than new data."
        advice = "Stop early (pass validation data), use a smaller network, or more data."
        return Verdict(name, "problem", number, meaning, advice)
    if gap > NUM_ERRORS * error:
        meaning = "Training data are scored slightly better than held-out data."
        return Verdict(name, "look", number, meaning, "With validation data, fit stops earlier.")
    return Verdict(name, "fine", number, "Held-out data are scored as well as training data.")


def encoder_coverage(found: Findings) -> Verdict:
    """Judge how many data points have importance weights with too heavy a tail."""
    failed = found.evidence.pareto_k > found.pareto_threshold
    share, total = failed.double().mean().item(), len(failed)
    error = math.sqrt(share * (1 - share) / total)
    threshold = found.pareto_threshold
    number = f"{100 * share:.1f} ± {100 * error:.1f} % of data with k̂ > {threshold:.2f}"
    if share - NUM_ERRORS * error > FAILED_SHARE:
        meaning = "For some data q(z|x) misses the posterior, so their log p(x) is too low."
        advice = "posterior.hmc and log_evidence by AIS depend less on q."
        if found.gaps is not None:
            advice = f"See the gaps below; {advice}"
        return Verdict("encoder misses posteriors", "look", number, meaning, advice)
    meaning = "q(z|x) covers the posterior of most data, so their log p(x) can be trusted."
    return Verdict("encoder misses posteriors", "fine", number, meaning)


def inference_gap(found: Findings) -> Verdict:
    """Judge how far the ELBO is below log p(x), and whether family or encoder is the cause."""
    if found.gaps is None:
        meaning = "Not measured: only the guide of a VAE with declared parameters can be refined."
        return Verdict("inference gap", "unknown", "", meaning)
    total = found.gaps.mean_total
    number = (
        f"{_with_error(total)} nats: guide family {_with_error(found.gaps.mean_approximation)}, "
        f"encoder {_with_error(found.gaps.mean_amortization)}"
    )
    meaning = "The ELBO is below log p(x) by this much."
    if total.value - NUM_ERRORS * total.std_error > GAP:
        return Verdict("inference gap", "look", number, meaning, found.gaps.advice)
    return Verdict("inference gap", "fine", number, meaning)


def prior_misfit(found: Findings) -> Verdict:
    """Judge how far the codes of all data are from the prior, KL(q(z) ‖ p(z))."""
    misfit = found.held_out.marginal_kl
    if math.isnan(misfit.value):
        return Verdict("prior misfit", "unknown", "", "The data do not share one prior.")
    number = f"KL(q(z) ‖ p(z)) = {_with_error(misfit)} nats"
    if misfit.value - NUM_ERRORS * misfit.std_error > MISFIT:
        meaning = "The codes leave parts of the prior empty, so some samples look like no data."
        advice = "A VampPrior, GaussianMixture or FlowPrior can gain up to this much."
        return Verdict("prior misfit", "look", number, meaning, advice)
    return Verdict("prior misfit", "fine", number, "All codes together fill the prior.")


def calibrated(found: Findings) -> Verdict:
    """Judge whether posteriors of simulated data contain the truth as often as they should."""
    if found.calibration is None:
        return Verdict("calibration", "unknown", "", "Not measured for these latents.")
    levels, coverage = found.calibration.coverage_levels, found.calibration.expected_coverage
    index = int((levels - 0.9).abs().argmin())
    error = found.calibration.coverage_std_error[index].item()
    level, held = levels[index].item(), coverage[index].item()
    number = (
        f"{100 * level:.0f} % regions of q(z|x) contain the truth in {100 * held:.1f} ± "
        f"{100 * error:.1f} % of simulations"
    )
    if abs(held - level) - NUM_ERRORS * error > 0.05:
        side = "too narrow or biased" if held < level else "too wide"
        meaning = f"On data simulated by the model, q(z|x) is {side}."
        advice = "Do not read the widths of q as uncertainty; resample (posterior.sir) instead."
        return Verdict("calibration", "look", number, meaning, advice)
    meaning = "On data simulated by the model, q(z|x) is calibrated."
    return Verdict("calibration", "fine", number, meaning)


def _with_error(number: Estimate) -> str:
    """Format value ± error to two digits, or an upper bound below the noise."""
    if math.isnan(number.value):
        return "not defined"
    if number.is_non_negative and number.is_below_noise:
        return f"< {2 * number.std_error:.2g}"
    return f"{number.value:.2f} ± {number.std_error:.2f}"
