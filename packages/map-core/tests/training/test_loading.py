"""Batches are on their way to a GPU one step before they are needed, in order, each once."""

import pytest

from map_core.training.loading import start_one_ahead


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_next_batch_is_started_before_one_is_used(count: int) -> None:
    events: list[tuple[str, int]] = []

    def start(batch: int) -> int:
        events.append(("started", batch))
        return 10 * batch

    for batch in start_one_ahead(iter(range(count)), start):
        events.append(("used", batch // 10))
    assert [number for event, number in events if event == "used"] == list(range(count))
    for number in range(count):
        before = events[: events.index(("used", number))]
        assert [n for event, n in before if event == "started"] == list(range(min(number + 2, count)))
