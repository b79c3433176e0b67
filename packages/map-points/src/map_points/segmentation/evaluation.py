"""IoU of a trained part segmenter, for the command ``evaluate``."""

from typing import Any

from map_core.commands.results import refuse_other_classes
from map_core.errors import UserError
from map_core.tasks.evaluation import Stopwatch, choose_device
from map_points.data import load_part_data
from map_points.segmentation.metrics import part_metrics
from map_points.segmentation.task import PROTOCOL, load_segmenter, segmentation_totals


def evaluate_segmenter(config: Any) -> dict[str, Any]:
    """Measure a part segmenter, for its summary.

    Args:
        config: Configuration of the command ``evaluate``.

    Raises:
        UserError: the protocol votes, or the data have other categories or parts than the run.
    """
    if config.evaluation.protocol != "no_vote":
        raise UserError(
            f"evaluation.protocol {config.evaluation.protocol!r} is for classifiers; segmentation has no_vote only"
        )
    run, data = load_segmenter(config.init), load_part_data(config.data)
    where = config.data.root or "the embedded shapes"
    refuse_other_classes(data.classes, run.classes, data=where, init=config.init)
    if data.parts != run.parts:
        raise UserError(f"the parts of {where} are not those that {config.init} was trained on")
    device = choose_device(config.evaluation.device)
    with Stopwatch(device) as watch:
        totals = segmentation_totals(
            run.model.to(device),
            data.evaluation,
            run.parts,
            batch_size=config.evaluation.batch_size,
            workers=config.evaluation.workers,
            device=device,
            precision=config.evaluation.precision,
            progress="evaluate" if config.evaluation.progress else None,
        )
    return {
        "protocol": f"no_vote: {PROTOCOL}",
        "evaluated_on": data.evaluated_on,
        **part_metrics(totals, run.classes),
        "clouds": len(data.evaluation),
        **watch.report(len(data.evaluation)),
    }
