"""An autoencoder of some coordinates as one of all: it reads nothing of the others, and gives 0 for them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch

from finescope.sae.architectures.base import Autoencoder


@torch.no_grad()
def spread(sae: Autoencoder, coordinates: Sequence[int], width: int) -> Autoencoder:
    """Return an autoencoder of width D whose codes of x are those that ``sae`` gives of x[coordinates].

    Args:
        sae: of as many coordinates as are named.
        coordinates: of D, ascending.
        width: D.
    """
    config = dataclasses.replace(sae.cfg, num_latents=sae.num_latents)
    found = type(sae)(width, config, dtype=sae.dtype, device=sae.device)
    place = torch.tensor(coordinates, device=sae.device)
    wide, of_coordinates = found.state_dict(), ("encoder.weight", "W_dec", "b_dec")
    for name, narrow in sae.state_dict().items():
        if name in of_coordinates:
            wide[name].zero_()
            wide[name][..., place] = narrow
        else:
            wide[name].copy_(narrow)
    found.frame, found.origin = copy.copy(sae.frame), sae.origin
    found.expected_l0 = sae.expected_l0
    return found
