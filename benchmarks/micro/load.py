"""Every task of the micro language by name, and the version it is of."""

from typing import Any

Tables = dict[str, dict[str, list[Any]]]  # split -> column -> values


def load_tables(name: str) -> tuple[Tables, str]:
    """The splits of a generated task, and its version. Raises ValueError for an unknown one."""
    if name == "e2e":
        from .data_to_text import DATA_TO_TEXT_VERSION, load_data_to_text

        return load_data_to_text(), DATA_TO_TEXT_VERSION
    if name == "xsum":
        from .summaries import SUMMARIES_VERSION, load_summaries

        return load_summaries(), SUMMARIES_VERSION
    if name in ("squad", "squad_sea"):
        from .questions import QUESTIONS_VERSION, load_questions

        return load_questions(name), QUESTIONS_VERSION
    from .tasks import TASKS_VERSION, load_micro

    return load_micro(name), TASKS_VERSION
