"""What a study measures before it plans."""

from helpers import TINY

from seal_lite.encoders.vision import VisionEncoder
from seal_lite.studies import speed


def test_what_is_done_once_a_process_is_not_part_of_the_speed(sections, monkeypatch):
    """On a card, the search for a batch size takes longer than the patches that are timed."""
    events = []
    clock = speed.clock
    batch_size = VisionEncoder.batch_size
    monkeypatch.setattr(speed, "clock", lambda place: events.append("clock") or clock(place))
    monkeypatch.setattr(
        VisionEncoder,
        "batch_size",
        lambda self, px: events.append("search") or batch_size(self, px),
    )
    measured = speed.measure_speed(sections, TINY)
    assert measured.cached_patches > 0
    assert events.index("search") < events.index("clock")
