"""The loader: the same bytes whatever the workers, ranks and restarts; bad files, dead and hanging workers, orphans."""

import hashlib
import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import deque

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from edgemim.data.folders import scan_folder
from edgemim.data.loader import build_loader, epoch_order, eval_loader, sample_key
from edgemim.data.transforms import FinetuneTransform, PretrainTransform
from edgemim.data.workers import WorkerError, _next
from edgemim.edge.images import Preprocessing, load_image
from edgemim.errors import UserError

N = 22
SIZE = 24


@pytest.fixture
def pictures(tmp_path):
    """22 JPEGs of several sizes in two classes."""
    rng = np.random.default_rng(0)
    for number in range(N):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((30 + number, 50 - number), Image.Resampling.BICUBIC).save(path, quality=95)
    return tmp_path / "pictures"


TRANSFORM = PretrainTransform().build(SIZE)


def stream(folder, *, transform=TRANSFORM, batch_size=8, seed=3, total_steps=5, **options):
    return build_loader(folder, transform, batch_size=batch_size, seed=seed, total_steps=total_steps, **options)


def content(batch):
    """One hash a sample over everything that a sample is."""
    return [
        hashlib.sha256(image.numpy().tobytes() + repr((int(label), int(index), int(key))).encode()).hexdigest()
        for image, label, index, key in zip(batch.images, batch.labels, batch.indices, batch.keys, strict=True)
    ]


def contents(batches):
    return [content(batch) for batch in batches]


def test_samples_are_what_their_keys_say(pictures):
    """Against a slow spelling: order, key, decode, transform, label."""
    folder = scan_folder(pictures)
    batches = list(stream(folder))
    assert len(batches) == len(stream(folder)) == 5
    for step, batch in enumerate(batches):
        epoch, k = divmod(step, N // 8)
        expected = epoch_order(N, 3, epoch)[k * 8 : (k + 1) * 8].tolist()
        assert batch.indices.tolist() == expected
        assert batch.keys.tolist() == [sample_key(3, epoch, index) for index in expected]
        assert batch.labels.tolist() == [folder.label(index) for index in expected]
        assert batch.images.dtype == torch.uint8
        assert batch.skipped == []
        for image, index, key in zip(batch.images, expected, batch.keys.tolist(), strict=True):
            assert np.array_equal(image.numpy(), TRANSFORM(load_image(folder.path(index)), key))


@pytest.mark.parametrize("transform", [TRANSFORM, FinetuneTransform().build(SIZE)], ids=["crop", "policy"])
def test_workers_change_nothing(pictures, transform):
    folder = scan_folder(pictures)
    alone = contents(stream(folder, transform=transform))
    for workers in (1, 2):
        torch.manual_seed(workers)
        assert contents(stream(folder, transform=transform, workers=workers)) == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_accumulation_share_the_same_samples(pictures, workers):
    folder = scan_folder(pictures)
    whole = contents(stream(folder))
    ranks = [contents(stream(folder, rank=rank, world=2, accumulate=2, workers=workers)) for rank in (0, 1)]
    for step in range(5):
        parts = [ranks[rank][2 * step + micro] for rank in (0, 1) for micro in (0, 1)]
        assert [len(part) for part in parts] == [2, 2, 2, 2]
        assert sorted(itertools.chain(*parts)) == sorted(whole[step])
        assert ranks[0][2 * step] + ranks[0][2 * step + 1] == whole[step][0::2]


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_tail(pictures, workers):
    folder = scan_folder(pictures)
    undisturbed = contents(stream(folder))
    for start in (0, 1, 3, 5):
        assert contents(stream(folder, start_step=start, workers=workers)) == undisturbed[start:]


def test_a_stream_can_be_left_and_started_again(pictures):
    folder = scan_folder(pictures)
    batches = stream(folder, workers=1, total_steps=50)
    first = [content(batch) for batch, _ in zip(batches, range(3), strict=False)]
    again = [content(batch) for batch, _ in zip(batches, range(3), strict=False)]
    assert first == again
    assert psutil.Process().children() == []


def test_the_loader_draws_nothing_from_the_global_generators(pictures):
    """Else a run with another worker count would drop other paths."""
    folder = scan_folder(pictures)
    torch.manual_seed(0)
    expected = torch.rand(3)
    for workers in (0, 1):
        torch.manual_seed(0)
        list(stream(folder, transform=FinetuneTransform().build(SIZE), total_steps=2, workers=workers))
        assert torch.equal(torch.rand(3), expected)


def test_batch_moves_as_one(pictures):
    batch = next(iter(stream(scan_folder(pictures))))
    batch.skipped.append(("x", "y"))
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in (moved.images, moved.labels, moved.indices, moved.keys)} == {"meta"}
    assert moved.skipped == [("x", "y")]
    assert len(moved) == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_reach_the_gpu(pictures):
    folder = scan_folder(pictures)
    plain = contents(stream(folder))
    pinned = list(stream(folder, workers=1, pin_memory=True))
    assert all(batch.images.is_pinned() for batch in pinned)
    assert [content(batch.to("cuda").to("cpu", non_blocking=False)) for batch in pinned] == plain


def test_a_batch_that_does_not_fit_is_refused(pictures):
    folder = scan_folder(pictures)
    with pytest.raises(UserError, match=r"larger than the data \(22 images\)"):
        stream(folder, batch_size=23)
    with pytest.raises(UserError, match="multiple of 3"):
        stream(folder, world=3)


# Bad files


def spoil(path, how="text"):
    if how == "text":
        path.write_bytes(b"this is no picture")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-60])
    else:
        path.unlink()


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_by_key_and_reported(pictures, workers):
    folder = scan_folder(pictures)
    clean = list(stream(folder))
    bad = {3, 10, 11}
    for index, how in zip(sorted(bad), ("text", "cut", "gone"), strict=True):
        spoil(folder.path(index), how)
    batches = list(stream(folder, workers=workers))
    assert contents(batches) == contents(stream(folder))
    replaced = 0
    for batch, before in zip(batches, clean, strict=True):
        assert batch.keys.tolist() == before.keys.tolist()
        for place, index in enumerate(before.indices.tolist()):
            if index in bad:
                replaced += 1
                assert int(batch.indices[place]) not in bad
                image = load_image(folder.path(int(batch.indices[place])))
                assert np.array_equal(batch.images[place].numpy(), TRANSFORM(image, int(batch.keys[place])))
                assert int(batch.labels[place]) == folder.label(int(batch.indices[place]))
            else:
                assert content(batch)[place] == content(before)[place]
    reported = [path for batch in batches for path, _ in batch.skipped]
    assert len(reported) >= replaced > 0
    assert set(reported) <= {str(folder.path(index)) for index in bad}
    assert all(reason for batch in batches for _, reason in batch.skipped)


def test_replacements_are_spread_over_the_data(pictures):
    folder = scan_folder(pictures)
    spoil(folder.path(0))
    shown = []
    for seed in range(40):
        batches = list(stream(folder, seed=seed, batch_size=N, total_steps=1))
        order = epoch_order(N, seed, 0).tolist()
        shown.append(int(batches[0].indices[order.index(0)]))
    assert len(set(shown)) > 12


def test_a_file_that_vanishes_during_the_run_is_counted(pictures):
    folder = scan_folder(pictures)
    batches = iter(stream(folder, workers=1, total_steps=30))
    next(batches)
    gone = folder.path(7)
    gone.unlink()
    skipped = [entry for batch in batches for entry in batch.skipped]
    assert {path for path, _ in skipped} == {str(gone)}
    assert "exist" in skipped[0][1]


@pytest.mark.parametrize("workers", [0, 1])
def test_all_unreadable_is_one_clear_error(pictures, workers):
    folder = scan_folder(pictures)
    for index in range(N):
        spoil(folder.path(index))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"100 images in a row could not be read, .*edgemim data check") as caught:
        list(stream(folder, workers=workers))
    assert time.monotonic() - started < 10
    assert "Traceback" not in str(caught.value)


def test_too_many_pixels_are_skipped(pictures):
    folder = scan_folder(pictures)
    Image.new("RGB", (2000, 1000)).save(folder.path(5))
    batches = list(stream(folder, batch_size=N, total_steps=1, max_pixels=1_000_000))
    (path, reason), *_ = batches[0].skipped
    assert path == str(folder.path(5))
    assert "too large" in reason


# Evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_and_complete(pictures, workers):
    folder = scan_folder(pictures)
    preprocessing = Preprocessing(image_size=SIZE)
    batches = list(eval_loader(folder, preprocessing, batch_size=5, workers=workers))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 2]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(N))
    assert torch.cat([batch.labels for batch in batches]).tolist() == folder.labels.tolist()
    for index, image in enumerate(torch.cat([batch.images for batch in batches])):
        expected = preprocessing.resize_crop(load_image(folder.path(index)))
        assert np.array_equal(image.numpy().transpose(1, 2, 0), expected)


def test_evaluation_of_chosen_images(pictures):
    batches = list(eval_loader(scan_folder(pictures), Preprocessing(image_size=SIZE), batch_size=2, indices=[9, 2, 4]))
    assert [batch.indices.tolist() for batch in batches] == [[9, 2], [4]]


@pytest.mark.parametrize("bad", [{4}, {0, 1}, {2, 3, 4, 5}, {20, 21}, {0, 1, 20, 21}, set(range(1, N))])
def test_evaluation_leaves_out_and_reports_unreadable_images(pictures, bad):
    folder = scan_folder(pictures)
    for index in bad:
        spoil(folder.path(index))
    batches = list(eval_loader(folder, Preprocessing(image_size=SIZE), batch_size=2, workers=1))
    assert min(len(batch) for batch in batches) > 0
    assert torch.cat([batch.indices for batch in batches]).tolist() == [i for i in range(N) if i not in bad]
    reported = [path for batch in batches for path, _ in batch.skipped]
    assert reported == [str(folder.path(index)) for index in sorted(bad)]


def test_evaluation_of_nothing_is_an_error(pictures):
    folder = scan_folder(pictures)
    for index in range(N):
        spoil(folder.path(index))
    with pytest.raises(UserError, match=r"no image could be read for evaluation: .*00\.jpg"):
        list(eval_loader(folder, Preprocessing(image_size=SIZE), batch_size=4))
    with pytest.raises(UserError, match="choose at least one"):
        list(eval_loader(folder, Preprocessing(image_size=SIZE), batch_size=4, indices=[]))


# Workers that die or hang


class Slow:
    """A transform that tells where it runs and hangs when the key's place is reached."""

    def __init__(self, folder, hang_at=()):
        self.folder, self.hang_at = folder, set(hang_at)

    def __call__(self, image, key):
        (self.folder / str(os.getpid())).touch()
        if key in self.hang_at:
            time.sleep(600)
        return TRANSFORM(image, key)


def worker_pids(folder):
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS], ids=["killed", "bus error"])
def test_a_killed_worker_is_named_within_seconds(pictures, tmp_path, number):
    folder = scan_folder(pictures)
    (tmp_path / "pids").mkdir()
    batches = iter(stream(folder, transform=Slow(tmp_path / "pids"), workers=2, total_steps=500))
    next(batches)
    next(batches)
    pid = worker_pids(tmp_path / "pids")[0]
    os.kill(pid, number)
    started = time.monotonic()
    expected = "SIGKILL.*out of memory" if number == signal.SIGKILL else "SIGBUS.*shared memory"
    with pytest.raises(WorkerError, match=rf"pid {pid}\) was killed \({expected}"):
        deque(batches)
    assert time.monotonic() - started < 10
    assert psutil.Process().children() == []


def test_a_worker_that_cannot_be_reaped_yet_is_still_named():
    """Its connection breaks first: a killed process closes its files some time before its parent sees it dead."""
    dead_at = time.monotonic() + 1.5

    class Dying:
        pid, exitcode = 4321, -signal.SIGKILL

        def is_alive(self):
            return time.monotonic() < dead_at

    def broken():
        raise ConnectionResetError(104, "Connection reset by peer")
        yield

    with pytest.raises(WorkerError, match=r"pid 4321.*SIGKILL"):
        _next(broken(), [Dying()], timeout_s=30)


def test_a_worker_killed_while_it_is_waited_for(pictures, tmp_path):
    """No batch is left, the run already waits: the loader has to wake up by itself."""
    folder = scan_folder(pictures)
    (tmp_path / "pids").mkdir()
    transform = Slow(tmp_path / "pids", hang_at=[sample_key(3, 0, int(epoch_order(N, 3, 0)[0]))])
    killer = subprocess.Popen(
        [sys.executable, "-c", KILL_FIRST, str(tmp_path / "pids")], stdout=subprocess.PIPE, text=True
    )
    started = time.monotonic()
    with pytest.raises(WorkerError, match="out of memory"):
        next(iter(stream(folder, transform=transform, workers=1)))
    assert time.monotonic() - started < 10
    assert killer.wait(5) == 0


KILL_FIRST = """
import os, sys, time
while not os.listdir(sys.argv[1]): time.sleep(0.05)
time.sleep(0.5)
os.kill(int(os.listdir(sys.argv[1])[0]), 9)
"""


def test_a_hanging_worker_times_out(pictures, tmp_path):
    folder = scan_folder(pictures)
    (tmp_path / "pids").mkdir()
    hang_at = [sample_key(3, 0, int(epoch_order(N, 3, 0)[9]))]  # in the second batch
    batches = iter(stream(folder, transform=Slow(tmp_path / "pids", hang_at), workers=2, timeout_s=3))
    next(batches)
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"no batch for \d+ s from the data-loading workers \(pid \d+, \d+\)"):
        next(batches)
    assert 3 <= time.monotonic() - started < 10
    assert psutil.Process().children() == []


def test_slow_is_not_hanging(pictures, tmp_path):
    """Longer than the polling interval, shorter than the limit: the same batches, none lost or doubled."""
    folder = scan_folder(pictures)
    slept = Sleepy()
    assert contents(stream(folder, transform=slept, workers=1, total_steps=2, timeout_s=60)) == contents(
        stream(folder, total_steps=2)
    )


class Sleepy:
    def __call__(self, image, key):
        time.sleep(0.4)
        return TRANSFORM(image, key)


class Broken:
    def __call__(self, image, key):
        raise RuntimeError("a fault in a transform")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_ours_keeps_its_traceback(pictures, workers):
    with pytest.raises(RuntimeError, match="a fault in a transform"):
        list(stream(scan_folder(pictures), transform=Broken(), workers=workers))
    assert psutil.Process().children() == []


RUN = """
import sys, time
from pathlib import Path
from edgemim.data.folders import scan_folder
from edgemim.data.loader import build_loader
from edgemim.data.transforms import PretrainTransform
batches = iter(build_loader(scan_folder(sys.argv[1]), PretrainTransform().build(24), batch_size=8,
                            seed=0, total_steps=1000, workers=2))
for _ in range(2):  # one from each worker: both have begun
    next(batches)
print("ready", flush=True)
if sys.argv[2] == "leave":
    sys.exit(3)
sys.stdin.readline()
for _ in range(20):
    next(batches)
print("done", flush=True)
sys.exit(0)
"""


def start_run(pictures, mode):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RUN), str(pictures), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process, psutil.Process(process.pid).children()


def test_workers_survive_the_signals_of_a_scheduler(pictures):
    process, workers = start_run(pictures, "wait")
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        for worker in workers:
            worker.send_signal(number)
    time.sleep(0.2)
    assert all(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    output, _ = process.communicate("\n", timeout=60)
    assert (output, process.returncode) == ("done\n", 0)
    assert psutil.wait_procs(workers, timeout=5)[1] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_orphan_outlives_a_killed_parent(pictures, number):
    process, workers = start_run(pictures, "wait")
    process.send_signal(number)
    process.wait(10)
    assert psutil.wait_procs(workers, timeout=5)[1] == []


def test_a_run_that_ends_early_ends_its_workers(pictures):
    """Without a word to the loader: the exit must not wait for workers that ignore SIGTERM."""
    started = time.monotonic()
    process, workers = start_run(pictures, "leave")
    assert process.wait(20) == 3
    assert time.monotonic() - started < 25
    assert psutil.wait_procs(workers, timeout=5)[1] == []


def test_class_balanced_batches(pictures):
    """A class of two images beside two of eleven: a third of what is shown, each repetition with its own key and crop."""
    (pictures / "few").mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures / "few" / f"{number}.png")
    folder = scan_folder(pictures)
    few = folder.classes.index("few")
    options = {"class_balanced": True, "total_steps": 6}
    batches = list(stream(folder, **options))
    labels = torch.cat([batch.labels for batch in batches])
    counts = torch.bincount(labels)
    assert counts.max() - counts.min() <= 6
    keys = torch.cat([batch.keys for batch in batches])
    assert len(set(keys.tolist())) == len(keys)
    first = next(batch for batch in batches if few in batch.labels)
    place = int((first.labels == few).nonzero()[0])
    expected = TRANSFORM(load_image(folder.path(int(first.indices[place]))), int(first.keys[place]))
    assert np.array_equal(first.images[place].numpy(), expected)
    for other in (stream(folder, workers=2, **options), stream(folder, start_step=3, **options)):
        others = list(other)
        for a, b in zip(batches[-len(others) :], others, strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.keys, b.keys) and torch.equal(a.indices, b.indices)


def test_what_a_worker_gets_is_small(pictures):
    """The folder travels as the name of its index: a worker adds no copy of a million paths."""
    for directory, _, _ in os.walk(pictures):
        os.utime(directory, (1_600_000_000, 1_600_000_000))
    folder = scan_folder(pictures)
    dataset = stream(folder)._loader.dataset
    assert len(pickle.dumps(dataset)) < 2000
    shutil.rmtree(pictures)
