"""What is common to all streams: places become keys, what cannot be read is replaced and named, whatever a sample is."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgemim.data.order import epoch_order, sample_key  # noqa: E402
from edgemim.data.stream import Batch, TrainingSamples, fault, training_stream  # noqa: E402
from edgemim.edge.images import ImageError  # noqa: E402
from edgemim.errors import UserError  # noqa: E402

COUNT, SEED = 12, 3


def words(bad: dict[int, Exception]) -> TrainingSamples:
    """Samples that are words: no picture has to exist for the order to be right."""

    def read(index: int) -> str:
        if index in bad:
            raise bad[index]
        return f"word {index}"

    def collect(crops, shown, keys, skipped) -> Batch:
        assert crops == [f"word {index} at {key}" for index, key in zip(shown, keys, strict=True)]
        numbers = torch.tensor(shown)
        return Batch(numbers, numbers, numbers, torch.tensor(keys), skipped)

    transform = "{} at {}".format
    return TrainingSamples(COUNT, SEED, "the set", read=read, transform=transform, collect=collect)


def test_batches_are_the_order_and_keys_of_the_epoch() -> None:
    batches = list(training_stream(words({}), batch_size=4, total_steps=6))
    shown = torch.cat([batch.indices for batch in batches]).tolist()
    assert shown == [*epoch_order(COUNT, SEED, 0).tolist(), *epoch_order(COUNT, SEED, 1).tolist()]
    keys = torch.cat([batch.keys for batch in batches]).tolist()
    assert keys == [sample_key(SEED, place // COUNT, index) for place, index in enumerate(shown)]


def test_what_cannot_be_read_is_replaced_under_the_key_of_its_place() -> None:
    bad = {5: ImageError("b.png", "is empty"), 7: PermissionError(13, "Permission denied", "c.png")}
    batches = list(training_stream(words(bad), batch_size=4, total_steps=3))
    indices = torch.cat([batch.indices for batch in batches]).tolist()
    order = epoch_order(COUNT, SEED, 0).tolist()
    assert [index for index in order if index not in bad] == [
        shown for shown, index in zip(indices, order, strict=True) if index not in bad
    ]
    assert not {*bad} & {*indices}
    assert {("b.png", "is empty"), ("c.png", "Permission denied")} <= {
        entry for batch in batches for entry in batch.skipped
    }
    assert torch.cat([batch.keys for batch in batches]).tolist() == [sample_key(SEED, 0, index) for index in order]


def test_a_set_without_anything_readable_ends_in_a_sentence() -> None:
    bad: dict[int, Exception] = {index: ImageError(f"{index}.png", "is empty") for index in range(COUNT)}
    with pytest.raises(UserError, match=r"100 images in a row .*\.png: is empty; `edgemim data check the set`"):
        list(training_stream(words(bad), batch_size=4, total_steps=3))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="set it to 12 or less"):
        training_stream(words({}), batch_size=13, total_steps=1)


def test_fault_names_the_file() -> None:
    assert fault(OSError(5, "Input/output error", "/disk/a.jpg")) == ("/disk/a.jpg", "Input/output error")
    assert fault(OSError("odd")) == ("", "odd")
