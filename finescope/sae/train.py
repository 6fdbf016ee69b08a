"""Training of sparse autoencoders: from any source of activations, resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from finescope.config import SaeConfig, TrainingConfig
from finescope.device import usable_device
from finescope.errors import FineScopeError, InputError
from finescope.ops.checks import all_finite
from finescope.optim import SaeAdam
from finescope.sae import losses
from finescope.sae.architectures import architecture_class
from finescope.sae.architectures.base import Autoencoder
from finescope.sae.dead import DeadLatents
from finescope.sae.initial import SAMPLE_TOKENS, initialise_from_data
from finescope.sae.metrics import METRICS_NAME, TERMS, Log, Meter, Metrics, Progress
from finescope.sae.objective import Batch, TrainingTerms
from finescope.sae.parallel import ALONE, Ranks
from finescope.sae.sources import Activations, Source, open_source
from finescope.sae.state import STATE_NAME, Position, identity, load_state, save_state
from finescope.storage.files import make_folder, remove_temporaries, write_json

SETTINGS_NAME = "training.json"

_DEAD_TOKENS = 10_000_000  # Gao et al. (2024), §A.2
_MAX_WARMUP_STEPS = 1_000


def train_sae(
    activations: Activations,
    sae_cfg: SaeConfig | None = None,
    train_cfg: TrainingConfig | None = None,
    *,
    mask: Tensor | None = None,
    out_dir: str | Path | None = None,
    resume: bool = True,
    progress: Progress = None,
    ranks: Ranks = ALONE,
) -> Autoencoder:
    """Train a sparse autoencoder on activations.

    The loss is FVU (or the normalised MSE) + l1_weight · L1 + auxk_alpha · AuxK + FVU(4K) / 8, the last with
    ``sae_cfg.multi_topk``; :mod:`finescope.sae.losses` has the terms. The optimiser is
    :class:`finescope.optim.SaeAdam`. The result depends only on the data, the configurations and the numbers
    of threads and ranks; the latter change no more than the rounding of sums.

    Args:
        activations: Tensor or ndarray (memory-mapped too) [N,S,D] or [B,D]; an activation store; or an
            iterable of [...,D] batches, which must be iterable anew for every epoch. Any floating dtype.
        sae_cfg: F, K and options; ``SaeConfig()`` if left out.
        train_cfg: how to train; ``TrainingConfig()`` if left out.
        mask: bool [N,S] or [B], True for the tokens to train on; only with tensors and arrays.
        out_dir: directory for the SAE (``cfg.json``, ``sae.safetensors``), ``metrics.jsonl``,
            ``training.json`` and the state to resume from; None writes nothing.
        resume: go on from the state in ``out_dir`` if there is one, with the same result, bit for bit, as a
            run that never stopped. A finished run is extended if ``num_epochs`` grew. False starts over.
        progress: None for a bar on a terminal and plain lines elsewhere (standard error), False for
            silence, a function that is called with every record of metrics, or a
            :class:`finescope.progress.Reporter`, which shows the training as one of its tasks.
        ranks: the processes that train together, as :func:`finescope.sae.parallel.launched` gives them. All
            are given the same data and configurations, and each takes its share of every batch; the first
            alone reads and writes ``out_dir`` and reports. The losses are those of one process.

    Returns:
        The trained autoencoder, on ``train_cfg.device``.

    Raises:
        InputError: unusable activations (shape, type, NaN or infinity: the batch is named), no such device,
            or ``out_dir`` holds a run with other settings or data, or of more epochs.
        StoreError: ``out_dir`` can't be written, or the state in it is damaged.
        FineScopeError: the loss became NaN although the activations are finite; or another rank ended.
    """
    sae_cfg = SaeConfig() if sae_cfg is None else sae_cfg
    cfg = TrainingConfig() if train_cfg is None else train_cfg
    # A caller that reads activations without gradients still wants the autoencoder to have them.
    with torch.inference_mode(False), torch.enable_grad():
        source = open_source(activations, cfg, mask, ranks)
        trainer = Trainer(source, sae_cfg, cfg, None if out_dir is None else Path(out_dir), ranks)
        trainer.prepare(resume)
        trainer.run(progress)
    return trainer.sae


class Trainer:
    """One training run: the weights, the optimiser, the dead-latent counters and the position in the data."""

    def __init__(
        self,
        source: Source,
        sae_cfg: SaeConfig,
        cfg: TrainingConfig,
        out_dir: Path | None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.source = source
        self.cfg = cfg
        self.ranks = ranks
        self.out_dir = out_dir if ranks.first else None
        self.device = usable_device(cfg.device)
        kind = architecture_class(sae_cfg.architecture)
        self.sae: Autoencoder = kind(source.width, sae_cfg, device=self.device, seed=cfg.seed)
        self.sae.prepare_training()
        self.peak_lr = cfg.learning_rate or 2e-4 / math.sqrt(self.sae.num_latents / 2**14)
        self.optimiser = SaeAdam(
            [
                {
                    "params": [parameter],
                    "name": name,
                    "unit_norm": name == "W_dec" and sae_cfg.normalize_decoder,
                }
                for name, parameter in self.sae.named_parameters()
            ],
            lr=self.peak_lr,
        )
        self.dead = DeadLatents(self.sae.num_latents, self.device)
        self.position = Position()
        self.window = Meter(self.device)
        self.epoch_means = Meter(self.device)
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=self.device)

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None if the length of the data is unknown."""
        per_epoch = self.source.steps_per_epoch
        return None if per_epoch is None else per_epoch * self.cfg.num_epochs

    def prepare(self, resume: bool) -> None:
        """Resume from ``out_dir``, or initialise from the data; the first rank does, for all."""
        if self.ranks.first:
            self._prepare(resume)
        if self.ranks.alone:
            return
        self.position, self.sae.expected_l0 = self.ranks.take((self.position, self.sae.expected_l0))
        if self.position.step and not self.ranks.first:
            self.optimiser.start_at(self.position.step)
        self.ranks.take_(self._state())

    def _state(self) -> Iterator[Tensor]:
        """Yield the tensors that all ranks have alike."""
        yield self.dead.since_fired
        for tensor in (*self.sae.parameters(), *self.sae.buffers()):
            yield tensor.detach()
        for parameter in self.sae.parameters():
            moments = self.optimiser.state.get(parameter, {})
            yield from (moments[name] for name in ("exp_avg", "exp_avg_sq") if name in moments)

    def _prepare(self, resume: bool) -> None:
        self._who = identity(self.sae.cfg, self.cfg, self.source.kind, self.source.fingerprint())
        if self.out_dir is not None:
            make_folder(self.out_dir)
            remove_temporaries(self.out_dir)
            state = self.out_dir / STATE_NAME
            if resume and state.exists():
                self.position = load_state(state, self.sae, self.optimiser, self.dead.since_fired, self._who)
                if self.position.epoch > self.cfg.num_epochs:
                    raise InputError(
                        f"{state} is of a run that has finished {self.position.epoch} epochs, more than the"
                        f" {self.cfg.num_epochs} asked for; ask for as many, choose another output directory,"
                        " or delete that file to start over (from Python: resume=False)"
                    )
                self.sae.expected_l0 = self.position.expected_l0
                self.window.restore(self.position.sums["window"])
                self.epoch_means.restore(self.position.sums["epoch"])
                self.sae.save(self.out_dir)  # the run may have been killed between the two
                return
            # Left in place, it could be resumed from by a later run, should this one die before its first
            # save.
            state.unlink(missing_ok=True)
            write_json(self.out_dir / SETTINGS_NAME, self._who)
        sample = self.source.sample(SAMPLE_TOKENS)
        if not all_finite(sample):
            self._refuse_batches()
        initialise_from_data(self.sae, sample)
        self.position.warmup_steps = self._warmup_steps()
        self.position.dead_threshold = self.cfg.dead_feature_threshold or min(
            _DEAD_TOKENS, self.source.num_tokens or _DEAD_TOKENS
        )

    def run(self, progress: Progress = None) -> None:
        """Train until ``cfg.num_epochs`` epochs are done."""
        metrics = None if self.out_dir is None else self.out_dir / METRICS_NAME
        shown = progress if self.ranks.first else False
        with Log(shown, metrics, self.total_steps, self.position.step) as log:
            self._clock = (time.perf_counter(), self.position.step, self.position.tokens)
            while self.position.epoch < self.cfg.num_epochs:
                self._run_epoch(log)
        self.sae.zero_grad(set_to_none=True)

    def _run_epoch(self, log: Log) -> None:
        here = self.position
        batches = 0
        for rows in self.source.batches(here.epoch, here.batch):
            batches += 1
            self._step(self._checked(rows))
            log.advance(here.step)
            if here.step % self.cfg.log_every == 0:
                log.record(self._metrics("step", self.window))
                self.window.clear()
            if self.cfg.save_every_steps and here.step % self.cfg.save_every_steps == 0:
                self._save()
        if batches == 0 and here.batch == 0:  # a share without tokens still is a batch
            raise InputError(f"the activations gave no tokens in epoch {here.epoch + 1}")
        here.epoch, here.batch = here.epoch + 1, 0
        log.record(self._metrics("epoch", self.epoch_means))
        self.epoch_means.clear()
        last = here.epoch == self.cfg.num_epochs
        if last or (self.cfg.save_every and here.epoch % self.cfg.save_every == 0):
            self._save()

    def _step(self, x: Tensor) -> None:
        """Take one optimiser step on a batch, of which this rank has ``x`` [b,D]."""
        here, ranks = self.position, self.ranks
        batch = Batch(x, ranks)
        rate, factors = self._learning_rate(here.step), self.sae.learning_rate_factors()
        for group in self.optimiser.param_groups:
            group["lr"] = rate * factors.get(group["name"], 1.0)
        dead = self.dead.latents(here.dead_threshold) if self._revives() else None
        here.step += 1
        here.batch += 1
        here.tokens += batch.tokens
        sums = torch.zeros(len(TERMS), dtype=torch.float64, device=self.device)
        uncounted, pairs = batch.tokens, 0
        for terms in self._terms(batch, dead):
            self.dead.count(terms.fired, uncounted)
            uncounted = 0
            if self._revives():
                self.dead.look(here.dead_threshold)  # while the device is busy with the backward pass
            loss = self._loss(terms)
            loss.backward()  # type: ignore[no-untyped-call]
            sums += self._values(loss, terms, batch.tokens)
            pairs += terms.pairs
        self.sae.expected_l0 = ranks.total(pairs, self.device) / max(1, batch.tokens)
        if not ranks.alone:
            ranks.add_([sums, *(p.grad for p in self.sae.parameters() if p.grad is not None)])
            self.dead.agree(ranks)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.sae.after_step()
        self.window.add(sums)
        self.epoch_means.add(sums)

    def _terms(self, batch: Batch, dead: Tensor | None) -> Iterator[TrainingTerms]:
        """Yield the terms of a batch, each made when it is asked for."""
        parts = self.sae.training_terms(batch, dead, self.cfg.auxk_k)
        while True:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.autocast == "bf16"):
                terms = next(parts, None)
            if terms is None:
                return
            yield terms

    def _loss(self, terms: TrainingTerms) -> Tensor:
        """Return the loss of some tokens of a step."""
        cfg = self.cfg
        fvu, mse = terms.main
        main = terms._replace(fvu=fvu, reconstruction_loss=mse)
        loss = losses.total(main, cfg.loss, cfg.l1_weight, cfg.auxk_alpha)
        return loss + cfg.sparsity_weight * terms.sparsity_loss

    def _values(self, loss: Tensor, terms: TrainingTerms, tokens: int) -> Tensor:
        """Return the values of ``metrics.TERMS`` for some of the tokens of a step, as shares of the whole."""
        active = (terms.fired < self.sae.num_latents).sum() / max(1, tokens)
        parts = [loss, *terms[:6], active]
        return torch.stack([part.detach().double() for part in parts])

    def _revives(self) -> bool:
        """Return whether AuxK may have work: it is wanted, and a latent has had the time to be dead."""
        return self.cfg.auxk_alpha != 0 and self.position.tokens >= self.position.dead_threshold

    def _learning_rate(self, step: int) -> float:
        warmup = self.position.warmup_steps
        return self.peak_lr * min(1.0, (step + 1) / warmup) if warmup else self.peak_lr

    def _warmup_steps(self) -> int:
        if self.cfg.lr_warmup_steps is not None:
            return self.cfg.lr_warmup_steps
        total = self.total_steps
        return _MAX_WARMUP_STEPS if total is None else min(_MAX_WARMUP_STEPS, total // 20)

    def _checked(self, rows: Tensor) -> Tensor:
        """Return the batch on the training device; refuse one with NaN or infinity.

        A batch that is already on an accelerator is only marked, and refused at the next look at the metrics.
        """
        if self.device.type == "cuda" and rows.device.type == "cpu":
            rows = rows.pin_memory()  # else the copy waits for all that the device still has to do
        x = rows.to(device=self.device, dtype=self.sae.dtype, non_blocking=True)
        if rows.device.type == "cpu":
            if not all_finite(rows):
                self._refuse(rows, self.position.epoch, self.position.batch)
        else:
            good = torch.isfinite(x).all() | (self._first_bad >= 0)
            self._first_bad = torch.where(good, self._first_bad, self.position.step)
        return x

    def _refuse(self, rows: Tensor, epoch: int, batch: int) -> None:
        """Raise InputError if ``rows`` has NaN or infinity."""
        bad = (~torch.isfinite(rows)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise InputError(
                f"activations contain NaN or infinity in {self.source.place(epoch, batch, row)}, dimension"
                f" {column}; remove such tokens, or find out why the model makes them (half precision?)"
            )

    def _refuse_batches(self) -> None:
        """Find and refuse the first bad batch of the first epoch: the sample has shown that there is one."""
        for batch, rows in enumerate(self.source.batches(0)):
            self._refuse(rows, 0, batch)
        raise InputError("activations contain NaN or infinity")

    def _metrics(self, event: str, meter: Meter) -> Metrics:
        """Return a record of metrics; raises if training has gone wrong since the last one."""
        self._check_health()
        here = self.position
        began, first_step, first_token = self._clock
        seconds = max(time.perf_counter() - began, 1e-9)
        total = self.total_steps
        left = None if total is None else seconds * (total - here.step) / max(1, here.step - first_step)
        dead = self.dead.mask(here.dead_threshold).double().mean()
        epoch = here.epoch if event == "epoch" else here.epoch + 1
        return {
            "event": event,
            "step": here.step,
            "epoch": epoch,
            "num_epochs": self.cfg.num_epochs,
            "tokens": here.tokens,
            **meter.means(),
            "dead_fraction": float(dead),
            "learning_rate": self._learning_rate(here.step - 1),
            "tokens_per_second": (here.tokens - first_token) / seconds,
            "eta_seconds": left,
        }

    def _check_health(self, weights: Iterable[Tensor] = ()) -> None:
        """Raise if a batch, the loss or one of ``weights`` was NaN or infinite."""
        bad_step = int(self._first_bad)
        if bad_step >= 0:
            raise InputError(f"activations contain NaN or infinity in the batch of step {bad_step + 1}")
        sums = self.epoch_means.state()
        if not math.isfinite(sum(sums)) or not all(map(all_finite, weights)):
            raise FineScopeError(
                f"loss or weights became NaN or infinite by step {self.position.step} on finite activations;"
                f" lower learning_rate (now {self.peak_lr:g})"
            )

    def _save(self) -> None:
        """Write the state to resume from, then the SAE. A run gone wrong never replaces a good state."""
        if self.out_dir is None:
            return
        self._check_health(self.sae.parameters())
        self.position.expected_l0 = self.sae.expected_l0
        self.position.sums = {"window": self.window.state(), "epoch": self.epoch_means.state()}
        path = self.out_dir / STATE_NAME
        save_state(path, self.sae, self.optimiser, self.dead.since_fired, self.position, self._who)
        self.sae.save(self.out_dir)
