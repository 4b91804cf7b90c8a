"""Seeded results as they were on 2026-11-26, so that a move that changes numbers is seen.

One number stands for each result, the sum of all of its entries with weights cos(1), cos(2), …
`python tests/test_same_numbers.py` prints a new table. The chunks are pinned, because other
chunks take other draws. In float64 processors differ by 1e-10; another draw moves percents.
"refine" is from 2026-11-27, when locations came to move in units of the guide's width.
"""

import pprint
import sys

import pytest
import torch

import pyrovae as pv

SETTINGS = {"epochs": 3, "batch_size": 64, "seed": 1}


def digits():
    return pv.datasets.binarize(pv.datasets.digits().train[:300])


def trained(compile, prior="StandardNormal"):
    vae = pv.build((8, 8), latent_dim=2, hidden=(16,), prior=prior, data=digits(), seed=0)
    vae.double()  # so that no processor's rounding turns a draw into another
    pv.fit(vae, digits(), compile=compile, **SETTINGS)
    return vae


def number_of(*arrays):
    """Σ_j cos(j) a_j over all finite entries."""
    flat = torch.cat([torch.as_tensor(a).detach().double().flatten() for a in arrays])
    flat = torch.where(flat.isfinite(), flat, 0.0)
    return float((flat * torch.arange(1, len(flat) + 1).double().cos()).sum())


def numbers(prior):
    vae, x = trained("eager", prior), digits()[:9]
    budget, iwae = {"memory_budget": 600_000}, {"method": "iwae", "num_samples": 9}
    ais = {"method": "ais", "num_samples": 2, "num_temperatures": 20, "memory_budget": 10**7}
    hmc = {"num_samples": 20, "num_warmup": 20, "memory_budget": 10**7}
    return {
        "weights": number_of(*vae.state_dict().values()),
        "iwae": number_of(*pv.log_evidence(vae, x, method="iwae", num_samples=300, **budget)[:3]),
        "subset": number_of(*pv.log_evidence(vae, digits(), num_data=20, **iwae)[:5]),
        "ais": number_of(*pv.log_evidence(vae, x, **ais)[:2]),
        "sir": number_of(pv.posterior.sir(vae, x, num_samples=9, num_proposals=99).draws),
        "hmc": number_of(pv.posterior.hmc(vae, x, **hmc).draws),
        "refine": number_of(*pv.posterior.refine(vae, x, num_steps=10)[1:]),
        "terms": number_of(*pv.elbo_terms(vae, x, num_samples=5)[:3]),
    }


FROZEN = {
    "StandardNormal": {
        "weights": -7.440471534274017,
        "iwae": 133.0076438879182,
        "subset": 1.0238955445666704,
        "ais": 25.245904008752728,
        "sir": -4.629619381222627,
        "hmc": 1.5982576196939036,
        "refine": 31.939384083510667,
        "terms": 20.015125500064286,
    },
    "VampPrior": {
        "weights": -27.575437726030692,
        "iwae": 378.82585071165227,
        "subset": -0.042753765561258206,
        "ais": 25.227560191362556,
        "sir": 2.523663067598031,
        "hmc": -17.780570189557807,
        "refine": 31.83775170443935,
        "terms": 17.07061410712918,
    },
}


@pytest.mark.parametrize("prior", FROZEN)
def test_seeded_results_are_unchanged(prior):
    assert numbers(prior) == pytest.approx(FROZEN[prior], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("prior", FROZEN)
def test_a_traced_run_ends_with_the_same_weights_and_terms(prior):
    """The results of a model are functions of its weights, so those of the engines are equal."""
    vae = trained("graph", prior)
    found = {
        "weights": number_of(*vae.state_dict().values()),
        "terms": number_of(*pv.elbo_terms(vae, digits()[:9], num_samples=5)[:3]),
    }
    assert FROZEN[prior] | found == pytest.approx(FROZEN[prior], rel=1e-6, abs=1e-6)


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {prior: numbers(prior) for prior in FROZEN}
    sys.stdout.write(pprint.pformat(found, sort_dicts=False) + "\n")
