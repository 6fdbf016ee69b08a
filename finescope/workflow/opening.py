"""Opening the model of a job and the SAE that it names, and seeing that the one was made for the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.device import usable_device
from finescope.errors import InputError
from finescope.progress import Reporter
from finescope.workflow.job import Job

if TYPE_CHECKING:
    from torch import nn

    from finescope.activations import ActivationTap
    from finescope.sae import Autoencoder

TAP_OPTIONS = ("layer", "dtype", "max_length", "stride", "refused_chats")
"""Fields of a job that change what ``open_tap`` gives, beside the model and the chat template."""

_SAME_MODEL = {"gpt2-small": "gpt2"}


def read_words(path: str, what: str) -> str:
    """Return the text of a file that an option names.

    Raises:
        InputError: no such file, or one that isn't text.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't UTF-8"
        raise InputError(
            f"the {what} {path} can't be read: {reason}; give a file with Jinja in it"
        ) from error


def chat_template(job: Job) -> str:
    """Return the text of a job's chat template, or "auto" or "plain".

    Raises:
        InputError: no such file, or one that isn't text.
    """
    given = job.chat_template
    return given if given in ("auto", "plain") else read_words(given, "chat template")


def text_template(job: Job) -> str | None:
    """Return the text of a job's template of texts, if it has one.

    Raises:
        InputError: no such file, or one that isn't text.
    """
    given = job.text_template
    if given is None or "{{" in given or "{%" in given:
        return given
    return read_words(given, "text template")


def open_tap(job: Job, reporter: Reporter) -> ActivationTap:
    """Load the model of a job and find its layer, quietly: this package reports its own progress.

    What trying the layer tells of it is said.
    """
    from finescope.activations.hookpoints import last_block

    if job.layer:
        return _tap(job, reporter, job.model, job.layer)
    model = _model(job)
    return _tap(job, reporter, model, last_block(model))


def _model(job: Job) -> nn.Module:
    import torch

    from finescope.activations import load_model
    from finescope.activations.models import keep_quiet

    keep_quiet()
    return load_model(job.model, device=job.device, dtype=getattr(torch, job.dtype))


def _tap(
    job: Job, reporter: Reporter, model: nn.Module | str, layer: str, *, start: bool | None = None
) -> ActivationTap:
    from finescope.activations import ActivationTap
    from finescope.activations.models import keep_quiet

    keep_quiet()
    tap = ActivationTap(
        model,
        layer,
        tokenizer=job.model,
        max_length=job.max_length,
        stride=job.stride,
        chat_template=chat_template(job),
        refused_chats=job.refused_chats,
        start=start,
        batch_tokens=job.batch_tokens,
        device=job.device,
        dtype=job.dtype if isinstance(model, str) else None,
    )
    for remark in tap.remarks:
        reporter.say(remark)
    return tap


def find_sae(path: str | Path, layer: str | None) -> Path | None:
    """Return the folder or file of an SAE, fetched from the hub if that is where it is; no model is loaded.

    Args:
        path: folder, file or hub name, with or without a hookpoint behind ``#``.
        layer: tells which of several is meant. None: None is returned where there are several.

    Raises:
        InputError: no SAE there, none of that layer, or the hub can't be reached.
    """
    from finescope.sae.formats.known import SeveralError, locate

    try:
        return locate(path)
    except SeveralError:
        return locate(path, layer) if layer else None


def place_of_sae(job: Job, layer: Callable[[], str]) -> Path:
    """Return the folder or file of the SAE that a job names; ``layer`` is asked only where there are several.

    Raises:
        InputError: as ``find_sae``.
    """
    path = str(job.sae_path)
    found = find_sae(path, job.layer or None) or find_sae(path, layer())
    if found is None:
        raise InputError(f"{path} holds several autoencoders; name the layer of one")
    return found


def load_sae(
    path: str | Path, device: str, width: int | None = None, *, facts: Mapping[str, Any] | None = None
) -> Autoencoder:
    """Load an SAE in any known format and check that it reads activations of the width there is.

    Args:
        path: its folder or file.
        device: where to put it.
        width: D of the layer; None doesn't check.
        facts: what its files leave out.

    Raises:
        InputError: no SAE there, one that can't be read right, or one of another width.
    """
    from finescope import sae as package

    sae = package.load_sae(path, device=usable_device(device), **(facts or {}))
    if width is not None and sae.d_in != width:
        raise InputError(
            f"the SAE in {path} reads activations of width {sae.d_in}, but the layer gives width {width}; "
            "use the model and layer that the SAE was trained on"
        )
    return sae


@dataclass(frozen=True)
class Given:
    """An SAE that a job names, and the model that it reads.

    Attributes:
        tap: the model at the place that the SAE was trained at.
        sae: the SAE.
        about: what it is and what is done for it; sentences without an end.
        warnings: why its codes may not be what they were in training.
    """

    tap: ActivationTap
    sae: Autoencoder
    about: tuple[str, ...]
    warnings: tuple[str, ...]


def open_given(job: Job, reporter: Reporter) -> Given:
    """Open the SAE that a job names and the model, at the place and with the start token of its training.

    What is known of the SAE is said, and what speaks against it.

    Raises:
        InputError: no SAE there, one that can't be read right, one of another place or width than the job's
            layer, or one of a place that the model hasn't or that can't be read; or as ``open_tap``.
    """
    from finescope.activations.hookpoints import last_block, resolve_hookpoint

    path = str(job.sae_path)
    place = find_sae(path, job.layer or None)  # before the model: the name may be wrong
    sae = None if place is None else load_sae(place, job.device, facts=job.sae_facts)
    model = _model(job)
    layer = resolve_hookpoint(model, job.layer) if job.layer else None
    if sae is None:
        layer = layer or last_block(model)
        sae = load_sae(find_sae(path, layer) or path, job.device, facts=job.sae_facts)
    warnings: list[str] = []
    trained = _trained_at(sae, model, path, layer, warnings)
    tap = _tap(job, reporter, model, layer or trained or last_block(model), start=sae.origin.bos)
    if sae.d_in != tap.width:
        raise InputError(
            f"the SAE in {path} reads activations of width {sae.d_in}, but the layer gives width {tap.width};"
            " use the model and layer that the SAE was trained on"
        )
    if sae.origin.model and not _may_be(sae.origin.model, job.model, model):
        warnings.append(
            f"the autoencoder was trained on {sae.origin.model}, and the run reads {job.model}: unless these"
            " are one model, its codes mean nothing"
        )
    if sae.origin.bos and not tap.windower.starts:
        warnings.append(
            "the autoencoder saw a start token before every text, and this tokenizer has none: first tokens"
            " may have other codes than in its training"
        )
    about = tuple(_about(sae, tap, trained))
    for words in (*about, *warnings):
        reporter.say(words)
    return Given(tap, sae, about, tuple(warnings))


def _trained_at(
    sae: Autoencoder, model: nn.Module, path: str, layer: str | None, warnings: list[str]
) -> str | None:
    """Return our name of the place that an SAE was trained at; None if its files don't say.

    Raises:
        InputError: the model has no such place, or the run reads another.
    """
    from finescope.activations.hooknames import is_hook_name, same_place, translate

    hook = sae.origin.hook
    if hook is None or not is_hook_name(hook):
        return None
    try:
        trained = translate(model, hook)
    except InputError as error:
        if layer is None:
            raise InputError(f"the autoencoder in {path} can't be used: {error}") from error
        warnings.append(f"the autoencoder was trained at {hook}, and the run reads {layer}: {error}")
        return None
    if layer is not None and not same_place(layer, trained):
        raise InputError(
            f"the autoencoder in {path} was trained at {hook}, which is {trained} in this model, but the run"
            f" reads {layer}; leave --layer out, or name an autoencoder of that layer"
        )
    return trained


def _may_be(said: str, name: str, model: nn.Module) -> bool:
    """Whether a model may be the one that an SAE's files name: libraries have names of their own for some."""
    loaded = str(getattr(getattr(model, "config", None), "name_or_path", "") or "")
    names = {_last_part(each) for each in (name, loaded) if each}
    return _last_part(said) in names


def _last_part(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return _SAME_MODEL.get(last, last)


def _about(sae: Autoencoder, tap: ActivationTap, trained: str | None) -> list[str]:
    origin = sae.origin
    first = f"autoencoder: {sae.architecture} of {origin.format}, {sae.num_latents:,} latents"
    if origin.model:
        first += f", trained on {origin.model}"
    if trained is None:
        first += f"; its files don't say of which layer, so {tap.layer} is read"
    else:
        first += f" at {origin.hook}" + (f", which is {tap.layer} here" if tap.layer != origin.hook else "")
    said = [first]
    if sae.frame.words():
        said.append(f"its activations: {'; '.join(sae.frame.words())}")
    if origin.bos is not None and tap.windower.starts == origin.bos:
        said.append(f"{'a' if origin.bos else 'no'} start token stands before a text, as in its training")
    return said + list(origin.notes)
