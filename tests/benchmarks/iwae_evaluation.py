"""IWAE-K evidence of `pyrovae.log_evidence` against a hand-written loop of the same products.

    python tests/benchmarks/iwae_evaluation.py --num-samples 5000 --num-data 10000

The network is 784-300-300-40 and back, Bernoulli likelihood, float32, random weights and binary
images (neither changes the time). Both run in this process, in turn, `--repeats` times; the
script prints the medians, their ratio (target: ≤ 1.3) and the peak memory of the process
(target: < 1.5 GB). The loop keeps no largest weights and no k̂.
"""

import argparse
import math
import resource
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import pyrovae as pv

PAIRS = 600  # draws times data at a time: no slower than 300, 1250, 2500, 5000 or 20000


def hand_written(vae: nn.Module, x: Tensor, num_samples: int) -> Tensor:
    """log (1/K) Σ_k w_k, (N,), with plain torch calls."""
    log_px = []
    draws = min(num_samples, PAIRS)
    for rows in x.split(max(1, PAIRS // draws)):
        loc, raw = vae.encoder[0](rows).chunk(2, -1)
        scale = softplus(raw) + 1e-5
        total = torch.full((len(rows),), -math.inf, dtype=torch.float64)
        for start in range(0, num_samples, draws):
            noise = torch.randn(min(draws, num_samples - start), *loc.shape)
            z = loc + scale * noise
            logits = vae.decoder[0](z)
            bce = binary_cross_entropy_with_logits(
                logits, rows.expand_as(logits), reduction="none"
            ).sum(-1)
            # log p(z) − log q(z|x): the constants ½ log 2π cancel
            log_ratio = (0.5 * noise**2 - 0.5 * z**2 + scale.log()).sum(-1)
            total = torch.logaddexp(total, (log_ratio - bce).double().logsumexp(0))
        log_px.append(total - math.log(num_samples))
    return torch.cat(log_px)


def timed(function, *args) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-samples", type=int, default=500)
    parser.add_argument("--num-data", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    vae = pv.build((784,), latent_dim=40, hidden=(300, 300), seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.bernoulli(torch.full((settings.num_data, 784), 0.3), generator=generator)
    ours, theirs = [], []
    with torch.no_grad():
        hand_written(vae, x[:2], 100)
        pv.log_evidence(vae, x[:2], method="iwae", num_samples=100)
        for _ in range(settings.repeats):
            seconds, reference = timed(hand_written, vae, x, settings.num_samples)
            theirs.append(seconds)
            seconds, found = timed(
                lambda: pv.log_evidence(
                    vae, x, method="iwae", num_samples=settings.num_samples, seed=None
                )
            )
            ours.append(seconds)
    ratio = statistics.median(ours) / statistics.median(theirs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux → GiB
    difference = (found.log_px - reference).mean().item()
    print(
        f"IWAE-{settings.num_samples} of {settings.num_data} images, {settings.threads} thread(s)"
    )
    print(f"hand-written  {statistics.median(theirs):8.2f} s   {[round(t, 2) for t in theirs]}")
    print(f"log_evidence  {statistics.median(ours):8.2f} s   {[round(t, 2) for t in ours]}")
    print(f"ratio         {ratio:8.3f}     (to be <= 1.3)")
    print(f"peak memory   {peak:8.3f} GiB (to be < 1.5)")
    print(f"mean difference of log p(x) {difference:.3f} nat (two sets of draws)")


if __name__ == "__main__":
    main()
