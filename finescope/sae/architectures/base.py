"""What all architectures of sparse autoencoder share: parameters, the way in and out, files."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from finescope.codes import SparseCodes
from finescope.config import SaeConfig
from finescope.errors import InputError
from finescope.html.notebook import notebook
from finescope.ops import PackedMatrix, topk_encode
from finescope.ops.packed import PackedCache
from finescope.optim import normalise_rows_
from finescope.progress import counted
from finescope.sae import composed
from finescope.sae.architectures import TRAINED, architecture_class
from finescope.sae.formats import known
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.described import describe
from finescope.sae.frame import Frame, Undo
from finescope.sae.objective import Batch, TrainingTerms
from finescope.sae.ragged import decode_codes
from finescope.storage.identity import sha256_tensors

_Sae = TypeVar("_Sae", bound="Autoencoder")

# As many rows are scanned while the weights are read once, which is what looking for changes of them costs.
_FEW_ROWS = 4


class Autoencoder(nn.Module, ABC):
    """A sparse autoencoder for activations of width D with F latents.

    Parameters of all: ``encoder.weight`` [F,D], ``W_dec`` [F,D], ``b_dec`` [D]; most have ``encoder.bias``
    [F]. A transcoder's ``W_dec`` and ``b_dec`` have the width of what it predicts; ``W_skip`` [D_out,D],
    where there is one, adds a linear map of the activations.

    Attributes:
        architecture: the name in the table.
        d_in: D.
        d_out: width of reconstructions; D but for transcoders.
        num_latents: F.
        cfg: the configuration.
        frame: what happens to activations before they are encoded.
        origin: where the weights come from.
    """

    architecture: ClassVar[str]
    signed: ClassVar[bool] = False
    """Whether codes may be negative."""
    has_encoder_bias: ClassVar[bool] = True
    l1_times_k: ClassVar[float] = 0.0
    """Weight of the L1 term, times K, by which about K latents of a token fire; 0 where something else
    sees to that."""

    def __init__(
        self,
        d_in: int,
        cfg: SaeConfig | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        cfg = SaeConfig(architecture=self.architecture) if cfg is None else cfg
        if d_in < 1:
            raise InputError(f"the width of the activations must be positive, got {d_in}")
        self.d_in = self.d_out = d_in
        if cfg.architecture not in (self.architecture, TRAINED[0]):
            raise InputError(
                f"{type(self).__name__} is of architecture {self.architecture}, but the configuration says"
                f" {cfg.architecture}; architecture_class({cfg.architecture!r}) has the class for that"
            )
        self.cfg = dataclasses.replace(cfg, architecture=self.architecture)
        self.num_latents = cfg.latents(d_in)
        self.frame = Frame()
        self.origin = Origin()
        self._packed = PackedCache()  # of the encoder, for inference
        self.expected_l0 = float(self.num_latents)
        """How many latents of a token fire, as far as training knows: what a step is planned for."""
        # By way of meta: the layer's own initialisation would draw from the global generator.
        device = torch.get_default_device() if device is None else torch.device(device)
        bias = self.has_encoder_bias
        encoder = nn.Linear(d_in, self.num_latents, bias=bias, device="meta", dtype=dtype)
        self.encoder = encoder.to_empty(device=device)
        self.W_dec = nn.Parameter(torch.empty_like(self.encoder.weight))
        self.b_dec = nn.Parameter(torch.empty(d_in, dtype=dtype, device=device))
        self.add_parameters()
        self.check_sizes()
        if not self.b_dec.is_meta:
            self.reset_parameters(seed)

    def add_parameters(self) -> None:
        """Make what the architecture has besides, empty, like ``b_dec`` in type and place."""

    def check_sizes(self) -> None:
        """Refuse a configuration whose numbers don't go together.

        Raises:
            InputError: naming them.
        """

    @torch.no_grad()
    def reset_parameters(self, seed: int = 42) -> None:
        """Draw new weights: uniform encoder rows, the decoder tied to them, biases zero."""
        bound = 1 / math.sqrt(self.d_in)
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(self.num_latents, self.d_in).uniform_(-bound, bound, generator=generator)
        self.encoder.weight.copy_(weight)
        if self.encoder.bias is not None:
            self.encoder.bias.zero_()
        self.W_dec.copy_(weight)
        if self.cfg.normalize_decoder:
            normalise_rows_(self.W_dec)
        self.b_dec.zero_()

    # ------------------------------------------------------------------ what it is

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.b_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the parameters; the widest, where a file keeps several."""
        kind = self.b_dec.dtype
        for parameter in self.parameters():
            kind = torch.promote_types(kind, parameter.dtype)
        return kind

    def extra_repr(self) -> str:
        return f"{self.architecture}, d_in={self.d_in}, num_latents={self.num_latents}"

    def _repr_html_(self) -> str:
        """Return what it is, for notebooks: what ``finescope sae info`` says of its files."""
        shapes = {name: tensor.to("meta") for name, tensor in self.state_dict().items()}
        about = describe(
            Checkpoint(self.architecture, shapes, self.cfg.to_dict(), self.frame, self.origin), {}
        )
        words = ["; ".join(value) if isinstance(value, list) else str(value) for value in about.values()]
        return notebook(
            f"Sparse autoencoder of width {self.d_in:,} with {counted(self.num_latents, 'latent')}",
            {"what": list(about), "is": words},
            caption="What is known of it",
        )

    # ------------------------------------------------------------------ in and out

    @abstractmethod
    def encode_rows(self, rows: Tensor) -> SparseCodes:
        """Return the codes of rows [B,D] that have come through :meth:`enter`."""

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """Return the latents that fire, as B sparse rows over F latents, on the device of the weights.

        A token costs what it holds. Which latents fire is decided in float64; without gradients.

        Args:
            x: activations [B,D] (or [...,D]: B is the product of the leading dimensions), any floating dtype.

        Returns:
            codes [B,F], latents ascending; float32 (float64 if activations or weights are).

        Raises:
            InputError: the last dimension isn't D, or the dtype isn't floating.
        """
        with torch.no_grad():
            return self.encode_rows(self.enter(x)[0])

    def decode(
        self, codes: SparseCodes | Tensor, indices: Tensor | None = None, *, inputs: Tensor | None = None
    ) -> Tensor:
        """Return the reconstruction [...,D] of codes, in the dtype of the decoder.

        Args:
            codes: [B,F]; or activations [...,K] of any K.
            indices: with activations, their latents, int64 [...,K].
            inputs: the activations [...,D] that were encoded. Needed where the SAE normalises every token
                or has a linear skip connection: then codes alone don't determine the reconstruction.

        Raises:
            InputError: the two shapes differ, or ``inputs`` are needed and missing.
            IndexError: a latent outside 0 … F−1 (raised by the operation).
        """
        mean = self._buffers.get("input_mean")
        undo = Undo(1 / self.frame.scale_out, 0.0 if mean is None else mean)
        if self.needs_inputs:
            if inputs is None:
                raise InputError(
                    "the reconstruction of this autoencoder depends on the activations too, which it "
                    "normalises or passes on; give them as inputs=, or call reconstruct(x)"
                )
            undo = self.enter(inputs)[1]
        if isinstance(codes, SparseCodes):
            shape: tuple[int, ...] = (len(codes),)
            out = self._sum(codes)
        else:
            if indices is None or codes.shape != indices.shape or codes.dim() == 0:
                given = None if indices is None else tuple(indices.shape)
                raise InputError(
                    "activations and indices of a code must have one shape [...,K], got"
                    f" {tuple(codes.shape)} and {given}"
                )
            shape, kept = codes.shape[:-1], codes.shape[-1]
            flat = codes.reshape(math.prod(shape), kept), indices.reshape(math.prod(shape), kept)
            out = composed.decode(*flat, self.W_dec, self.b_dec)
        return self.leave(out, undo, inputs).view(*shape, self.d_out)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the reconstruction [...,D] of activations [...,D], without gradients.

        Raises:
            InputError: the last dimension isn't D, or the dtype isn't floating.
        """
        with torch.no_grad():
            rows, undo = self.enter(x)
            out = self._sum(self.encode_rows(rows))
            return self.leave(out, undo, x).view(*x.shape[:-1], self.d_out)

    @property
    def needs_inputs(self) -> bool:
        """Whether :meth:`decode` has to be given the activations."""
        per_token = self.frame.normalise != "none" or self.frame.remove_mean
        return "W_skip" in self._parameters or (per_token and self.frame.undo)

    def enter(self, x: Tensor) -> tuple[Tensor, Undo]:
        """Return ``x`` [...,D] as rows [B,D] for the encoder, and the way back for reconstructions.

        Rows have the wider of their own dtype and the parameters', and b_dec taken off where that is asked
        for.
        """
        rows = self._rows(x)
        mean = self._buffers.get("input_mean")
        if mean is not None:
            rows = rows - mean
        undo = Undo(1.0, 0.0)
        if not self.frame.plain:
            rows, undo = self.frame.enter(rows)
        if mean is not None:
            undo = Undo(undo.factor, undo.offset + mean)
        if self.frame.subtract_b_dec:
            rows = self.frame.round(rows - self.b_dec)
        return rows, undo

    def _sum(self, codes: SparseCodes) -> Tensor:
        """Return the decoder's sum for codes [B,F]."""
        if self.frame.round_to:  # the library rounds before it adds b_dec, and after
            return decode_codes(codes, self.W_dec, None) + self.b_dec
        return decode_codes(codes, self.W_dec, self.b_dec)

    def leave(self, out: Tensor, undo: Undo, inputs: Tensor | None) -> Tensor:
        """Bring a reconstruction [B,D] back from where :meth:`enter` led, and add the skip connection."""
        skip = self._parameters.get("W_skip")
        kind = out.dtype
        if skip is not None and inputs is not None:
            rows = self._rows(inputs)
            mean = self._buffers.get("input_mean")
            rows = self.frame.round(rows if mean is None else rows - mean)
            out = out + self.frame.round(rows @ skip.to(rows.dtype).T)
        if not (isinstance(undo.factor, float) and undo.factor == 1):
            out = self.frame.round(out * undo.factor)
        if not (isinstance(undo.offset, float) and undo.offset == 0):
            out = out + undo.offset
        return out.to(kind)

    def _rows(self, x: Tensor) -> Tensor:
        """Return ``x`` [...,D] as rows [B,D] in the wider of its own dtype and the parameters'."""
        if not x.is_floating_point():
            raise InputError(f"activations must be floating-point numbers, got {x.dtype}")
        if x.dim() == 0 or x.shape[-1] != self.d_in:
            raise InputError(
                f"activations of shape {tuple(x.shape)} don't fit this autoencoder of width {self.d_in}; use"
                " activations of the model and layer that it was trained on"
            )
        flat = x.reshape(math.prod(x.shape[:-1]), self.d_in)
        return flat.to(torch.promote_types(flat.dtype, self.dtype))

    def packed_encoder(self, rows: Tensor) -> Tensor | None:
        """Return the packed copy of ``encoder.weight``, if it pays to have one for rows [B,D]."""
        if torch.is_grad_enabled() or len(rows) <= _FEW_ROWS:
            return None
        return self._packed.get(self.encoder.weight, "encode")

    def top(self, rows: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return ``topk_encode`` of rows [B,D] that have come through :meth:`enter`, with a bias [F]."""
        weight, packed = self.encoder.weight, self.packed_encoder(rows)
        if packed is None:
            return topk_encode(rows, weight, bias, k)
        return PackedMatrix.of(weight, "encode", packed).topk_encode(rows, bias, k)

    def scaled(self, values: Tensor, indices: Tensor) -> Tensor:
        """Return values [...] of latents [...], times ``value_scale`` [F] where the weights come with one."""
        scale = self._buffers.get("value_scale")
        return values if scale is None else values * scale.to(values.dtype)[indices]

    @torch.no_grad()
    def set_decoder_norm_to_unit_norm(self) -> None:
        """Scale every decoder row to unit length; zero rows stay."""
        normalise_rows_(self.W_dec)

    # ------------------------------------------------------------------ training

    def training_terms(self, batch: Batch, dead: Tensor | None, k_aux: int | None) -> Iterator[TrainingTerms]:
        """Yield the loss terms of a batch; those of several parts, and of all ranks, add up to its own.

        Args:
            batch: activations [B,D], or this rank's share of them.
            dead: latents that AuxK shall revive, int64 [n]; None for none.
            k_aux: dead latents that AuxK lets take part per token; D/2 if left out.

        Raises:
            InputError: this architecture is read from others' files only.
        """
        raise InputError(
            f"autoencoders of architecture {self.architecture} aren't trained here; {', '.join(TRAINED)} are"
        )

    def prepare_training(self) -> None:
        """Make what only training needs."""

    def start_from(self, sample: Tensor) -> None:
        """Set what the architecture has besides by a sample of activations [n,D], without gradients."""

    def learning_rate_factors(self) -> dict[str, float]:
        """Return, by name, the parameters whose learning rate is another multiple of the usual one."""
        return {}

    def after_step(self) -> None:
        """Bring parameters back to where they may be, after a step of the optimiser."""

    # ------------------------------------------------------------------ files

    def checkpoint(self) -> Checkpoint:
        """Return the weights, on the CPU, and all that gives them their meaning."""
        options = self.cfg.to_dict()
        tensors = {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()}
        return Checkpoint(self.architecture, tensors, options, self.frame, self.origin)

    def identity(self) -> dict[str, Any]:
        """Return what decides the codes, in plain values: equal for autoencoders that encode alike."""
        return {
            "architecture": self.architecture,
            "d_in": self.d_in,
            "num_latents": self.num_latents,
            "k": self.cfg.k,
            "frame": self.frame.to_dict(),
            "weights": sha256_tensors(self.state_dict()),
        }

    def save(self, directory: str | Path) -> None:
        """Write the autoencoder into ``directory``: in sparsify's layout, or as FineScope where that can't
        hold it.

        Raises:
            StoreError: the files can't be written.
        """
        known.write(self.checkpoint(), Path(directory))

    @classmethod
    def load(
        cls: type[_Sae],
        directory: str | Path,
        *,
        hookpoint: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> _Sae:
        """Read an SAE of this architecture; ``finescope.sae.load_sae`` reads any.

        Args:
            directory: a folder or file in any known format, or a folder with several, one per hookpoint.
            hookpoint: which of them, e.g. ``layers.10``; may be left out where there is only one.
            device: of the parameters; the CPU if left out.
            dtype: of the parameters; as stored if left out.

        Raises:
            InputError: there is no SAE, the hookpoint isn't there, or it is of another architecture.
            StoreError: a file is damaged, or its tensors don't have the shapes that the configuration says.
        """
        sae = build(known.read(directory, hookpoint=hookpoint), device=device, dtype=dtype)
        if not isinstance(sae, cls):
            raise InputError(
                f"{directory} holds an autoencoder of architecture {sae.architecture}, read as "
                f"{sae.origin.format}, not {cls.architecture}; load it with finescope.sae.load_sae"
            )
        return sae

    def _adopt(self, checkpoint: Checkpoint, device: torch.device | str, dtype: torch.dtype | None) -> None:
        """Take over tensors: as parameters where there are such, else as buffers."""
        trainable = {"W_skip", *dict(self.named_parameters())}
        for name, value in checkpoint.tensors.items():
            tensor = value.to(device=device, dtype=dtype or value.dtype)
            owner: nn.Module = self.encoder if name.startswith("encoder.") else self
            short = name.removeprefix("encoder.")
            if name in trainable:
                setattr(owner, short, nn.Parameter(tensor))
            else:
                owner.register_buffer(short, tensor)
        left = [name for name, tensor in self.state_dict().items() if tensor.is_meta]
        if left:
            raise ValueError(f"a checkpoint of {self.architecture} lacks {', '.join(left)}")
        self.d_out = self.b_dec.shape[0]
        self.frame, self.origin = checkpoint.frame, checkpoint.origin


def check_k(sae: Autoencoder) -> None:
    """Refuse more latents per token than there are.

    Raises:
        InputError: K exceeds F.
    """
    if sae.cfg.k > sae.num_latents:
        raise InputError(
            f"k={sae.cfg.k} latents per token were asked for, but the autoencoder has only {sae.num_latents};"
            " lower k or raise num_latents"
        )


def build(
    checkpoint: Checkpoint, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Autoencoder:
    """Make the module that a checkpoint describes.

    Args:
        checkpoint: from a format's reader.
        device: of the parameters; the CPU if left out.
        dtype: of the parameters; as stored, each for itself, if left out.
    """
    num_latents, d_in = checkpoint.tensors["encoder.weight"].shape
    options = {"num_latents": num_latents, **checkpoint.options, "architecture": checkpoint.architecture}
    cfg = SaeConfig.from_dict(options)
    sae: Autoencoder = architecture_class(checkpoint.architecture)(d_in, cfg, device="meta")
    sae._adopt(checkpoint, device or "cpu", dtype)
    return sae
