"""``finescope merge``: a run out of the shards that others have embedded."""

from __future__ import annotations

from pathlib import Path

import click

from finescope.cli import options
from finescope.cli.common import Place


@click.command("merge", short_help="Finish a run whose corpus was embedded in shares.")
@click.argument("run", type=Place(exists=True, file_okay=False))
@options.quiet_option
def command(run: Path | str, quiet: bool) -> None:
    """Put the shards of RUN together, score, select, measure and report: what `finescope curate` does last.

    RUN is the --out of `finescope plan`; from a URL its shards are brought to this machine first. Shards that
    aren't done are named; nothing is lost then, and nothing written. One that was damaged since counts as not
    done.
    """
    from finescope.progress import Reporter, duration
    from finescope.storage.remote_folder import Remote
    from finescope.storage.yaml12 import load_yaml
    from finescope.workflow.engines.merged import Merged
    from finescope.workflow.job import Job
    from finescope.workflow.layout import CONFIG, MANIFEST, PLAN
    from finescope.workflow.remoteplan import RemoteShards, fetch_plan
    from finescope.workflow.setrun import of_job

    remote = Remote(str(run))
    folder = remote.folder
    fetch_plan(remote)
    if not (folder / PLAN).is_file():
        raise click.UsageError(f"{run} holds no {PLAN}; give the --out of `finescope plan`.")
    if remote and remote.read(MANIFEST) is not None:
        remote.receive()  # it was merged before
    elif remote:
        RemoteShards(remote).fetch()
    job = Job.from_dict({**load_yaml((folder / CONFIG).read_text(encoding="utf-8")), "out": str(run)})
    outcome = of_job(job)(job, Reporter(quiet=quiet), engine=Merged()).curate()
    for line in outcome.lines():
        click.echo(line)
    click.echo(f"report: {outcome.folder / 'report.html'} ({duration(outcome.seconds)})")
