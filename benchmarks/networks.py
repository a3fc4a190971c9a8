"""The networks that are measured: random weights, BatchNorms calibrated so that every layer fires as trained ones do.

Speed does not depend on the weights' values, but on their shapes, on which of them are zero, and on how often
neurons fire.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stdeploy.checkpoint import save_checkpoint
from stdeploy.compress import apply_masks, prune, replace_lif
from stdeploy.compress.dsp import remove_dimensions
from stdeploy.errors import UserError
from stdeploy.models import SLIF, Spikformer
from stdeploy.models.calibration import calibrate_batchnorm
from stdeploy.models.presets import spikformer_cifar10

RATE = 0.08
"""Spikes by neuron, step and image that every neuron layer with a BatchNorm is calibrated to."""
_LIVELIER = (2.0, 4.0, 8.0)
"""Factors of the rate that are tried in turn where a layer stays silent: what 99 % leaves of the attention does."""
_IMAGES = 4


def pictures(count: int, seed: int) -> Tensor:
    """Images [count, 3, 32, 32] with the spectrum of natural ones, mean 0 and standard deviation 1 by channel.

    Amplitude falls as 1 / frequency (Field, "Relations between the statistics of natural images", 1987) and
    the colours go together. Neighbours fire together on such images, as they do on photographs, so that a max-pool of
    spikes is not as full as on white noise.
    """
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    colours = torch.tensor([[1.0, 0.3, 0.1], [1.0, 0.0, -0.2], [1.0, -0.3, 0.1]])
    mixed = torch.einsum("ij,njhw->nihw", colours, noise)
    along = torch.fft.fftfreq(32)
    frequency = (along[:, None] ** 2 + along[None, :] ** 2).sqrt().clamp_min(1 / 32)
    image = torch.fft.ifft2(torch.fft.fft2(mixed) / frequency).real
    return (image - image.mean((2, 3), keepdim=True)) / image.std((2, 3), keepdim=True)


def save_pictures(path: Path, count: int = 64, seed: int = 100) -> Path:
    """An .npz of images that no network was calibrated on, as --data takes it."""
    np.savez(path, images=pictures(count, seed).numpy())
    return path


def spikformer(
    path: Path, sparsity: float = 0.0, method: str = "dsp", rate: float = RATE, seed: int = 0
) -> Path:
    """Write Spikformer-4-384-1536 (32x32, T = 4), compressed to `sparsity`, calibrated to `rate`, to `path`.

    `method` "dsp" removes dimensions of the blocks (0.9 leaves 4-48-153, the papers' CIFAR-10 network), "l1p"
    zeroes single weights of them. Compressed blocks get sLIF neurons whose tau and threshold are near those they
    start from, as training leaves them. A file that is there already is kept.
    """
    if path.exists():
        return path
    torch.manual_seed(seed)
    model = Spikformer(spikformer_cifar10()).eval()
    if sparsity:
        masks, record = prune(model, method, sparsity)
        apply_masks(model, masks)
        if method == "dsp":
            model = remove_dimensions(model, record).eval()
        replace_lif(model)
        _learn_nothing_much(model, seed)
    images = pictures(_IMAGES, seed + 1)
    for factor in (1.0, *_LIVELIER):
        try:
            calibrate_batchnorm(model, images, factor * rate)
            break
        except UserError:
            if factor == _LIVELIER[-1]:
                raise
    save_checkpoint(path, model)
    return path


@torch.no_grad()
def _learn_nothing_much(model: Spikformer, seed: int) -> None:
    """Move every sLIF's tau and threshold a little: powers of two would be cheaper than what is learned."""
    generator = torch.Generator().manual_seed(seed)
    for neuron in (m for m in model.modules() if isinstance(m, SLIF)):
        neuron.tau.mul_(0.9 + 0.2 * torch.rand((), generator=generator))
        neuron.v_threshold.mul_(0.9 + 0.2 * torch.rand((), generator=generator))
