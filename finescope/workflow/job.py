"""Everything that one curation run was asked to do, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from finescope.config import SaeConfig, SaeFacts, TrainingConfig
from finescope.corpus.chat import REFUSED
from finescope.corpus.output import FORMATS
from finescope.curation.limits import SelectionConfig
from finescope.curation.scoring.presets import PRESETS, Preset
from finescope.curation.scoring.scorers import TABLE
from finescope.curation.scoring.sums import is_scorer, parse_scorer
from finescope.curation.scoring.weighting import WEIGHTINGS
from finescope.curation.shares import (
    is_share,
    named_twice,
    parse_shares,
    repeated,
    unequal_shares,
    written_shares,
)
from finescope.embeddings.pooler import POOLINGS
from finescope.errors import InputError
from finescope.fields import (
    Allowed,
    AnyText,
    Configuration,
    Count,
    Device,
    Metavar,
    Section,
    Seed,
    Size,
    Text,
    check,
    fields_of,
    one_of,
)
from finescope.sae.architectures import TRAINED
from finescope.storage.remote_folder import working_folder
from finescope.storage.yaml12 import dump_yaml
from finescope.workflow.setnames import WRITTEN, is_named_file

Folder = Annotated[Text, Metavar("DIR|URL")]
Column = Annotated[Text, Metavar("NAME")]
Columns = Annotated[
    Text,
    Allowed(
        lambda text: bool(text.replace(",", " ").strip()), "the name of a column, or several with commas"
    ),
    Metavar("NAME"),
]
TargetSets = list[Annotated[Text, Allowed(is_named_file, WRITTEN), Metavar("NAME=FILE")]]
Shares = list[Annotated[Text, Allowed(is_share, written_shares("NAME")), Metavar("NAME=X")]]
ScorerName = Annotated[
    str,
    Allowed(is_scorer, f"one of {', '.join(TABLE)}, or a sum of them", near=tuple(TABLE)),
    Metavar("NAME[+NAME...]"),
]


@dataclass
class Job(Configuration):
    """One run of ``finescope curate``; ``sae``, ``training`` and ``selection`` are sections of their own.

    Raises:
        InputError: values of a wrong type or out of range; the message names them all.
    """

    model: Annotated[AnyText, Metavar("NAME|DIR|FILE")] = ""
    """Language model: Hugging Face id, local folder or GGUF file."""
    layer: Annotated[AnyText, Metavar("MODULE")] = ""
    """Module to read, e.g. layers.10; its n-th run with @n behind it. Empty: the SAE's, or the last block."""
    targets: Annotated[AnyText, Metavar("FILE")] = ""
    """Target rows: 10 to 50 texts of the domain you want."""
    target_sets: TargetSets = field(default_factory=list)
    """Several target sets, each with a name. Empty: the one that targets names."""
    target_set_column: Column | None = None
    """Column of the targets that says of which set each is. None: all are of one."""
    exclusive: bool = False
    """Whether a row goes to the best of its target sets only."""
    shares: Shares = field(default_factory=list)
    """What each target set gets of the rows or tokens that are selected. Empty: limits are those of every
    set."""
    corpus: list[Annotated[Text, Metavar("FILE|DIR")]] = field(default_factory=list)
    """Rows to choose from: a file, a folder or an ``hf:`` name."""
    out: Folder = "curated"
    """Folder for all results, or the URL of one: s3://bucket/run."""
    text_column: Columns = "text"
    """Column of the text, or several with commas between; a.b reaches into objects."""
    text_template: Annotated[Text, Metavar("JINJA|FILE")] | None = None
    """Jinja template that makes the text from a row's columns. None: the text column."""
    id_column: Column = "id"
    """Column of the ids; made up where missing; none numbers the rows."""
    chat_template: Annotated[Text, Metavar("FILE|plain|auto")] = "auto"
    """Chat template of conversations: the model's own, a file with Jinja in it, or plain lines."""
    refused_chats: Annotated[str, one_of(REFUSED)] = "plain"
    """Conversations that the template refuses: read as plain lines, or stop the run."""
    max_bad_rows: Count = 0
    """Rows of the corpus that may be set aside because they can't be embedded: conversations that the chat
    template refuses, tokens that the model doesn't know, NaN activations. One more stops the run."""
    label_column: Column | None = None
    """Column of known labels: evaluates, never scores."""
    target_labels: list[Annotated[Text, Metavar("LABEL")]] = field(default_factory=list)
    """Label of the target domain. Empty: the labels of the targets."""
    format: Annotated[str, one_of(FORMATS)] | None = None
    """Format of the curated rows. None: that of the corpus."""
    limit: Size | None = None
    """Read only the first rows of the corpus."""
    sae_path: Annotated[Text, Metavar("PATH[#HOOKPOINT]")] | None = None
    """Trained SAE, of FineScope or another library: its folder or file, or a Hugging Face name; which of
    several, the hookpoint says. None: train one."""
    sae_facts: Annotated[dict[str, Any], Section(SaeFacts)] = field(default_factory=dict)
    """Fields of SaeFacts: what the files of the SAE leave out."""
    device: Device = "auto"
    """Where model and SAE run: cpu, cuda, cuda:1; auto is CUDA if there is one, else the CPU."""
    dtype: Annotated[str, one_of(("float32", "bfloat16", "float16"))] = "float32"
    """Element type of the model."""
    activation_dtype: Annotated[str, one_of(("float16", "bfloat16", "float32"))] = "float16"
    """Element type of the activations that are stored and that the SAE reads."""
    batch_tokens: Size = 8192
    """Tokens per forward pass."""
    max_length: Size | None = None
    """Tokens per window; longer texts are read in several. None: the model's limit."""
    stride: Size | None = None
    """Tokens by which windows overlap. None: none."""
    sinks: Annotated[str, one_of(("drop", "keep"))] = "drop"
    """Attention sinks, tokens whose norm is 10 times the usual and says nothing: left out of training and
    pooling, or kept."""
    train_tokens: Size = 2_000_000
    """Corpus tokens to train the SAE on, at most."""
    preset: Annotated[str, one_of(PRESETS)] = "default"
    """Recipe of pooling, weighting and scorer."""
    pooling: Annotated[str, one_of(POOLINGS)] | None = None
    """How token codes become a document's code, over the preset's."""
    weights: Annotated[str, one_of(WEIGHTINGS)] | None = None
    """Weighting of latents, over the preset's."""
    scorer: ScorerName | None = None
    """How a row is compared with the targets, over the preset's; a sum such as contrast+0.5*tfidf adds
    standardised scores."""
    coordinates: Count | None = None
    """Coordinates of the layer that the SAE is trained on, those of the largest Jacobian row norms, over the
    preset's; 0 for all."""
    top_m: Size = 3
    """Targets that the scorer top_m_mean averages."""
    top_k_activations: Size = 100
    """Latents kept per document."""
    seed: Seed = 42
    """Seed of everything random."""
    draws: Count = 50
    """Targets or groups of them left out in turn for the intervals."""
    report_rows: Count = 100
    """Selected rows shown in the report."""
    sae: Annotated[dict[str, Any], Section(SaeConfig)] = field(default_factory=dict)
    """Fields of SaeConfig that differ from the plan."""
    training: Annotated[dict[str, Any], Section(TrainingConfig)] = field(default_factory=dict)
    """Fields of TrainingConfig that differ from the plan."""
    selection: Annotated[dict[str, Any], Section(SelectionConfig)] = field(default_factory=dict)
    """Fields of SelectionConfig; without any limit, 100 rows are selected."""

    def __post_init__(self) -> None:
        vars(self).update(_checked(type(self), vars(self)))

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterable[str]:
        """Return what is wrong with values that are right each for itself. Fields may be absent."""
        window, overlap = values.get("max_length"), values.get("stride")
        if window and overlap and overlap >= window:
            yield f"stride is the overlap of two windows and must be below max_length {window}, got {overlap}"
        preset, wanted = PRESETS.get(values.get("preset", "default")), values.get("coordinates")
        wanted = preset.coordinates if wanted is None and preset is not None else wanted
        if values.get("sae_path") and wanted:
            yield (
                "an SAE of some coordinates only is trained by the run itself; leave sae_path out, or set "
                "preset paper or coordinates 0"
            )
        architecture = values.get("sae", {}).get("architecture", TRAINED[0])
        if architecture not in TRAINED:
            yield f"sae.architecture must be one of {', '.join(TRAINED)}, got {architecture!r}"
        latents, kept = (values.get("sae", {}).get(name) for name in ("num_latents", "k"))
        if latents and kept and kept > latents:
            yield f"sae.k must be at most sae.num_latents {latents}, got {kept}"
        widths = values.get("sae", {}).get("matryoshka_widths")
        if latents and widths and architecture == "matryoshka" and widths[-1] != latents:
            yield f"the last of sae.matryoshka_widths must be sae.num_latents {latents}, got {widths[-1]}"
        if latents and kept and architecture == "groupmax" and latents % kept:
            yield f"sae.num_latents of a groupmax must be a multiple of sae.k {kept}, got {latents}"
        yield from cls._conflicts_of_sets(values)
        yield from cls._conflicts_of_labels(values)

    @classmethod
    def _conflicts_of_sets(cls, values: Mapping[str, Any]) -> Iterable[str]:
        files, column = values.get("target_sets", []), values.get("target_set_column")
        targets, shares = values.get("targets", ""), values.get("shares", [])
        names = [text.partition("=")[0] for text in files]
        twice = repeated(names)
        if twice is not None:
            yield f"two target_sets are called {twice!r}"
        if files and (targets or column):
            yield "target_sets name the targets: leave targets and target_set_column out"
        elif column and not targets:
            yield "target_set_column is a column of targets: name their file"
        if not (files or column) and (shares or values.get("exclusive")):
            yield "exclusive and shares go with several target sets"
        unequal = named_twice(shares)
        if unequal is not None:
            yield f"shares give two to the set {unequal!r}"
        elif files and shares and set(parse_shares(shares)) != set(names):
            yield f"shares: {unequal_shares(parse_shares(shares), names)}"
        if shares and not _has_whole(values.get("selection", {})):
            yield f"shares are of a whole: give {_WHOLE}"

    @classmethod
    def _conflicts_of_labels(cls, values: Mapping[str, Any]) -> Iterable[str]:
        selection = values.get("selection", {})
        if values.get("label_column") is None:
            for name, given in (
                ("target_labels", values.get("target_labels")),
                ("selection.quotas", selection.get("quotas")),
            ):
                if given:
                    yield f"{name} are labels: name their column, label_column (--label-column)"
        if selection.get("quotas") and not _has_whole(selection):
            yield f"selection.quotas are shares of a whole: give {_WHOLE}"

    @classmethod
    def from_dict(cls, data: dict[str, Any], drop_extra_fields: bool = False) -> Job:
        """Build a job from nested plain values.

        Args:
            data: by name; ``sae``, ``training`` and ``selection`` are dictionaries.
            drop_extra_fields: ignore unknown names instead of refusing them.

        Raises:
            InputError: unknown names (the nearest are suggested), values of a wrong type or out of range.
        """
        known = fields_of(cls)
        return cls(**_checked(cls, {n: v for n, v in data.items() if n in known or not drop_extra_fields}))

    def to_yaml(self) -> str:
        """Return the job as a file that ``--config`` takes."""
        return dump_yaml(self.to_dict())

    def recipe(self) -> Preset:
        """Return the preset with this job's own pooling, weighting and scorer put over it."""
        preset = dataclasses.replace(PRESETS[self.preset], m=self.top_m)
        changes: dict[str, Any] = {
            name: value
            for name, value in vars(self).items()
            if name in ("pooling", "weights", "scorer", "coordinates")
            and value is not None
            and value != getattr(preset, name)
        }
        if not changes:
            return preset
        if self.preset == "default" and set(changes) == {"scorer"}:
            scorer = parse_scorer(changes["scorer"])
            return dataclasses.replace(
                preset, scorer=scorer.name, name=scorer.name, summary=scorer.summary, optional=False
            )
        summary = ", ".join(f"{name} {value}" for name, value in changes.items())
        optional = preset.optional and "scorer" not in changes
        return dataclasses.replace(
            preset,
            **changes,
            name=f"{self.preset}*",
            summary=f"{self.preset} with {summary}",
            optional=optional,
        )

    def selection_config(self) -> SelectionConfig:
        """Return the limits of the selection; 100 rows when none was given."""
        section = dict(self.selection)
        if not _limited(section):
            section["k"] = 100
        if self.recipe().selection == "supplement":
            section.setdefault("strategy", "clusters")
            section.setdefault("min_similarity", 0.5)
        section.setdefault("seed", self.seed)
        return SelectionConfig(**section)

    @property
    def folder(self) -> Path:
        """The output folder; of a URL, the folder of this machine that is copied there."""
        return working_folder(self.out)


_WHOLE = "how many rows (selection.k or selection.fraction) or tokens (selection.token_budget)"


def _limited(selection: Mapping[str, Any]) -> bool:
    """Whether a selection has any limit; without one 100 rows are selected."""
    limits = ("k", "fraction", "min_score", "min_similarity", "token_budget")
    return any(selection.get(name) is not None for name in limits)


def _has_whole(selection: Mapping[str, Any]) -> bool:
    """Whether a selection says of how many rows or tokens a share is."""
    whole = any(selection.get(name) is not None for name in ("k", "fraction", "token_budget"))
    return whole or not _limited(selection)


def _checked(kind: type[Job], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as they are to be kept.

    Raises:
        InputError: some are refused; all of them are named.
    """
    checked, wrong = check(kind, values, none="null")
    if wrong:
        raise InputError(";\n".join(wrong))
    return checked
