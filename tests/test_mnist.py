"""The main job at its published size, on real data (slow; needs PYROVAE_DATA)."""

import pytest

import pyrovae as pv


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Posterior collapse")  # of a part of the 50 dimensions
def test_twenty_epochs_reach_minus_105_nats(data_folder):
    """200 hidden units, 50 latents, the fixed binarized MNIST, held-out ELBO by one draw."""
    data = pv.datasets.binarized_mnist()
    vae = pv.build((28, 28), latent_dim=50, hidden=(200,), seed=0)
    pv.fit(vae, data.train, validation=data.valid, epochs=20)
    elbo = pv.elbo_terms(vae, data.test).log_weights.mean().item()
    print(f"held-out ELBO {elbo:.2f} nats per datum")
    assert elbo > -105
