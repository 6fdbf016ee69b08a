"""A causal model of which the upper blocks are trained, on stored activations of the blocks below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from finescope.activations.hookpoints import last_block, output_of
from finescope.activations.models import forward_options, load_causal_model
from finescope.errors import InputError
from finescope.storage.files import PathLike

CHUNK = 128
"""Tokens whose logits are held at a time."""
AGREES = 0.02
"""How far logits may be from the model's own, relatively: bfloat16 rounds by some thousandths."""
_PROBE = 16


class _CrossEntropy(torch.autograd.Function):
    """Sum of −log softmax(W·h)[token] over tokens, with W as it is: logits of few tokens are held at a time.

    The gradient, (softmax(W·h) − onehot)·W, is made in the same pass, while the logits are at hand.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
        """Return the sum; hidden [n,D], weight [V,D], wanted int64 [n]."""
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64)
        for low in range(0, len(hidden), CHUNK):
            part, tokens = hidden[low : low + CHUNK], wanted[low : low + CHUNK, None]
            logits = (part @ weight.T).float()
            normaliser = logits.logsumexp(1, keepdim=True)
            total += (normaliser - logits.gather(1, tokens)).double().sum()
            if gradient is not None:
                logits.sub_(normaliser).exp_()
                logits.scatter_add_(1, tokens, torch.full(tokens.shape, -1.0))
                gradient[low : low + CHUNK] = logits.to(part.dtype) @ weight
        ctx.save_for_backward(*([] if gradient is None else [gradient]))
        return total.to(torch.float32) if gradient is not None else total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient to hidden."""
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


@dataclass(frozen=True)
class Snapshot:
    """What training has made of a model, with the state of its optimiser."""

    weights: list[Tensor]
    moments: list[dict[str, Tensor]]


class UpperBlocks:
    """The upper blocks of a causal model with float32 weights behind them, and an AdamW for those.

    The blocks below never change, so what they give is computed once a text, whoever trains on it, and goes
    into the upper ones in place of embedded tokens. A text stands in a row of its own, padded on its right,
    where causal attention doesn't look.

    Attributes:
        blocks: how many are trained.
        parameters: how many numbers are trained.
    """

    def __init__(
        self,
        model: PathLike | nn.Module,
        blocks: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        decay: float = 0.0,
    ):
        """Load a model and take its upper blocks.

        Args:
            model: name, folder or GGUF file; or a causal model with its head, which is changed.
            blocks: to train, at most as many as there are.
            dtype: of what is computed.
            decay: of AdamW.

        Raises:
            InputError: no such model, or one that can't be cut there without changing its losses.
        """
        # Of short rows, attention in plain torch is a seventh faster than its kernel for the CPU.
        loaded: Any = (
            model
            if isinstance(model, nn.Module)
            else load_causal_model(model, dtype=dtype, attn_implementation="eager")
        )
        loaded = loaded.to(dtype).eval().requires_grad_(False)
        self._model, self._body = loaded, getattr(loaded, loaded.base_model_prefix)
        self._head = loaded.get_output_embeddings().weight.detach()
        stack_name = last_block(loaded).rpartition(".")[0]
        stack = loaded.get_submodule(stack_name)
        self.blocks = min(blocks, len(stack))
        self._options = forward_options(self._body)
        self._first = f"{stack_name}.{len(stack) - self.blocks}"
        self._whole, self._upper = stack, nn.ModuleList(list(stack)[-self.blocks :])
        self._owner, _, self._place = stack_name.rpartition(".")
        self._first_module = stack[len(stack) - self.blocks]
        self._check()
        self._weights = list(self._upper.parameters())
        self._upper.requires_grad_(True)
        self._master = [weight.detach().float().requires_grad_() for weight in self._weights]
        self.parameters = sum(weight.numel() for weight in self._weights)
        self._optimizer = torch.optim.AdamW(self._master, lr=0.0, weight_decay=decay, fused=True)

    def _check(self) -> None:
        """Refuse a model whose logits aren't what its upper blocks, fed so, and its head make of it."""
        ids = torch.arange(3, 3 + _PROBE)
        try:
            with torch.no_grad():
                own = self._model(input_ids=ids[None]).logits[0].float()
                ours = (self._hidden(self.below([ids]))[0] @ self._head.T).float()
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise InputError(f"the upper blocks of this model can't be run by themselves: {error}") from error
        change = float((own - ours).norm() / own.norm())
        if not change <= AGREES:
            raise InputError(
                "this model does more than to hand its tokens' embeddings through blocks to its head: its "
                f"logits change by {change:.1%} of their length when its upper {self.blocks} blocks are fed "
                "by themselves; take a model of Llama's kind"
            )

    @torch.no_grad()
    def below(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return what goes into the lowest block that is trained, [n,D] for each row of n token ids."""
        ids = pad_sequence(list(rows), batch_first=True)
        inputs = {"input_ids": ids, **self._options}
        hidden = output_of(self._body, self._first_module, self._first, 1, inputs, before=True)
        return [part[: len(row)].clone() for part, row in zip(hidden, rows, strict=True)]

    def _hidden(self, below: Sequence[Tensor]) -> Tensor:
        """What the head sees of rows, [rows,n,D], padded on the right."""
        owner = self._model.get_submodule(self._owner)
        setattr(owner, self._place, self._upper)
        try:
            out = self._body(inputs_embeds=pad_sequence(list(below), batch_first=True), **self._options)
        finally:
            setattr(owner, self._place, self._whole)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _loss(self, rows: Sequence[Tensor], below: Sequence[Tensor]) -> Tensor:
        """The sum over all tokens but the first of each row."""
        hidden = self._hidden(below)
        lengths = torch.tensor([len(row) for row in rows])
        there = torch.arange(hidden.shape[1] - 1)[None] < (lengths - 1)[:, None]
        found: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden[:, :-1][there], self._head, torch.cat([row[1:] for row in rows])
        )
        return found

    @torch.no_grad()
    def loss(self, rows: Sequence[Tensor], below: Sequence[Tensor]) -> tuple[float, int]:
        """Return the sum of the losses of all tokens but the first of each row, and how many they are."""
        return float(self._loss(rows, below)), sum(len(row) - 1 for row in rows)

    def step(self, rows: Sequence[Tensor], below: Sequence[Tensor], rate: float) -> float:
        """Take one step on the mean loss of a batch; return that loss.

        Args:
            rows: int64 [n], token ids, of at least two tokens.
            below: what ``below`` returned for each.
            rate: learning rate.
        """
        count = sum(len(row) - 1 for row in rows)
        loss = self._loss(rows, below) / count
        loss.backward()  # type: ignore[no-untyped-call]
        for weight, master in zip(self._weights, self._master, strict=True):
            assert weight.grad is not None
            master.grad, weight.grad = weight.grad.float(), None
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._copy_down()
        return float(loss.detach())

    @torch.no_grad()
    def _copy_down(self) -> None:
        for weight, master in zip(self._weights, self._master, strict=True):
            weight.copy_(master)

    def snapshot(self) -> Snapshot:
        """Return a copy of what has been learned."""
        moments = [
            {name: value.clone() for name, value in self._optimizer.state[master].items()}
            for master in self._master
        ]
        return Snapshot([master.detach().clone() for master in self._master], moments)

    @torch.no_grad()
    def restore(self, state: Snapshot) -> None:
        """Go back to a snapshot."""
        for master, weight, moments in zip(self._master, state.weights, state.moments, strict=True):
            master.copy_(weight)
            self._optimizer.state[master] = {name: value.clone() for name, value in moments.items()}
        self._copy_down()
