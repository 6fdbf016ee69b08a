"""Autoencoders by their names on the Hugging Face hub: only the files that one needs are brought here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finescope import hub
from finescope.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[^\s]+)?")


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a repository, with or without a path in it."""
    return bool(_NAME.fullmatch(text))


def fetch(
    name: str, hookpoint: str | None, wanted: Callable[[list[str], str | None, str], list[str]]
) -> Path:
    """Return the folder of a repository with the files of one autoencoder in it.

    What lies in the cache is taken from there where the hub can't be reached.

    Args:
        name: ``owner/repository``.
        hookpoint: which autoencoder of it.
        wanted: returns the files to bring, of the paths there are, for the hookpoint; the last argument is
            the name, for messages.

    Raises:
        InputError: there is no such repository, it isn't open to all, or it is neither here nor can be
            brought.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError as error:  # comes with transformers, which the rest of the package needs
        raise InputError(
            f"{name} is no folder here, and without huggingface_hub it can't be fetched"
        ) from error

    if not hub.reachable():
        reason = "is switched off by HF_HUB_OFFLINE" if hub.offline_by_choice() else "can't be reached"
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except LocalEntryNotFoundError as error:
            raise InputError(
                f"there is no autoencoder {name}: it is no folder or file here, it isn't in the cache of the"
                f" Hugging Face hub, and the hub {reason}; check the path, or download it on a machine with"
                f" a network (hf download {name})"
            ) from error
    try:
        files = wanted(HfApi().list_repo_files(name), hookpoint, f"{name} on the hub")
        return Path(snapshot_download(name, allow_patterns=[_literal(file) for file in files]))
    except GatedRepoError as error:
        raise InputError(
            f"{name} is gated: accept its conditions on its page on the hub, and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is no autoencoder {name}: it is no folder or file here, and the hub has no repository of"
            " that name, or a private one; check the spelling, or log in with `hf auth login`"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"{name} can't be downloaded from the hub: {_reason(error)}") from error


def _literal(file: str) -> str:
    """A pattern that only this file fits."""
    return re.sub(r"([*?\[])", r"[\1]", file)


def _reason(error: Any) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
