"""The W&B workspace of a sweep, as code: quality over size, which settings led there, and the report's page.

    pip install wandb-workspaces
    python -m sweeps.workspace --entity TEAM --project slimexp --group front_t5

It needs an account, and runs that were uploaded (`wandb sync`).
"""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

SETTINGS = ("pipeline.prune.sparsity", "pipeline.quantize.bits", "pipeline.distill.losses.kl.temperature.start")
METRICS = ("final/cer", "final/disk_mb")  # quality, size


def build(entity: str, project: str, group: str) -> "Workspace":
    """The definition; nothing is sent."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    cer, size = map(wr.SummaryMetric, METRICS)
    columns: list[Any] = [*map(wr.Config, SETTINGS), size, cer]
    panels: list[Any] = [
        wr.ScatterPlot(title="Quality over size", x=size, y=cer),
        wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in columns]),
        wr.MediaBrowser(title="The front", media_keys=["front"]),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Front of {group}",
        sections=[ws.Section(name="Front", panels=panels, is_open=True)],
        runset_settings=ws.RunsetSettings(filters=[ws.Metric("Group").isin([group])]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", required=True, help="user or team")
    parser.add_argument("--project", default="slimexp")
    parser.add_argument("--group", default="front_t5", help="the sweep: the group of its runs")
    options = parser.parse_args()
    print(build(options.entity, options.project, options.group).save().url)


if __name__ == "__main__":
    main()
