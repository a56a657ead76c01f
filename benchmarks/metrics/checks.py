"""What a task is measured by, checked before anything is loaded."""

from ..config.schema import LOSS, ScaleConfig, TaskConfig, generation_of
from .e2e import TEXT_METRICS
from .labels import EXACT_MATCH, MEAN, METRICS
from .rouge import ROUGE
from .squad import ANSWER_METRICS


def check_metrics(task: TaskConfig, scale: ScaleConfig) -> None:
    """Raises ValueError for metrics that do not go with the task's answers."""
    texts = generation_of(task, scale) is not None
    known = [LOSS, *TEXT_METRICS, *ROUGE, *ANSWER_METRICS] if texts else [*METRICS, EXACT_MATCH]
    unknown = [metric for metric in task.metrics if metric not in (*known, MEAN)]
    if unknown or task.selection_metric not in task.metrics:
        raise ValueError(
            f"task {task.name}: metrics {task.metrics}, selection_metric {task.selection_metric!r}; expected names "
            f"among {', '.join((*known, MEAN))}, the selection metric one of the task's; change conf/task/"
        )
    if (EXACT_MATCH in task.metrics) != bool(task.group_columns):
        raise ValueError(
            f"task {task.name}: metrics {task.metrics}, group_columns {task.group_columns}; expected {EXACT_MATCH} "
            "with columns that make groups, or neither; change conf/task/"
        )
    if MEAN in task.metrics and len(task.metrics) < 2:
        raise ValueError(f"task {task.name}: metrics {task.metrics}; expected others to take the mean of")
