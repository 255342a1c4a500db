"""The prepared store: right after any death, built once, honest about bad images."""

import csv
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mediffusion_core.common.errors import UserError
from mediffusion_core.data import ImageError, Source, default_store_folder, prepare
from mediffusion_core.settings import DataSettings

SETTINGS = DataSettings(source="medmnist", image_size=16, channels=1)
LENIENT = SETTINGS.model_copy(update={"max_bad_fraction": 0.05})


def tile(bad: frozenset[int], index: int) -> np.ndarray:
    """A plain grey image whose value tells its index."""
    if index in bad:
        raise ImageError("broken on purpose")
    return np.full((20, 24), index % 251, np.uint8)


def refuse(index: int) -> np.ndarray:
    raise AssertionError("decoded again")


def source(count: int, bad: frozenset[int] = frozenset(), centres: bool = True) -> Source:
    return Source(
        name="medmnist",
        classes=("a", "b"),
        multi_label=True,
        image_ids=tuple(f"image-{index}" for index in range(count)),
        labels=np.eye(2, dtype=np.float32)[np.arange(count) % 2],
        groups=tuple(f"group-{index // 2}" for index in range(count)),
        centres=tuple(f"centre-{index // 2 % 3}" for index in range(count)) if centres else None,
        load=partial(tile, bad),
        fingerprint=f"{count}-{sorted(bad)}",
    )


@pytest.mark.parametrize("workers", [None, 2])
def test_store_holds_the_images_and_labels_of_the_dataset(
    tmp_path: Path, workers: int | None
) -> None:
    seen: list[tuple[int, int]] = []
    given = source(100)
    store = prepare(given, SETTINGS, tmp_path, lambda *step: seen.append(step), workers)
    assert store.images.shape == (100, 16, 16, 1)
    assert (store.images == np.arange(100, dtype=np.uint8)[:, None, None, None]).all()
    assert not store.images.flags.writeable
    assert isinstance(store.images, np.memmap)
    assert np.array_equal(store.labels, given.labels)
    assert (store.groups, store.centres) == (given.groups, given.centres)
    assert (store.image_ids, store.classes) == (given.image_ids, given.classes)
    assert store.multi_label
    assert store.bad == ()
    assert seen[-1] == (100, 100)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_second_call_does_not_decode(tmp_path: Path) -> None:
    first = prepare(source(40, centres=False), SETTINGS, tmp_path)
    silent = dataclasses.replace(source(40, centres=False), load=refuse)
    second = prepare(silent, SETTINGS, tmp_path)
    assert np.array_equal(first.images, second.images)
    assert second.centres is None


def test_other_size_channels_or_fingerprint_are_other_stores(tmp_path: Path) -> None:
    prepare(source(4), SETTINGS, tmp_path)
    prepare(source(6), SETTINGS, tmp_path)
    colour = SETTINGS.model_copy(update={"channels": 3})
    assert prepare(source(4), colour, tmp_path).images.shape == (4, 16, 16, 3)
    small = SETTINGS.model_copy(update={"image_size": 8})
    assert prepare(source(4), small, tmp_path).images.shape == (4, 8, 8, 1)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 4


def test_bad_images_are_listed_and_left_out(tmp_path: Path) -> None:
    store = prepare(source(200, frozenset({7, 150})), SETTINGS, tmp_path, workers=1)
    good = [index for index in range(200) if index not in (7, 150)]
    assert store.images[:, 0, 0, 0].tolist() == good
    assert store.image_ids == tuple(f"image-{index}" for index in good)
    assert store.groups[7] == "group-4"
    assert store.bad == (
        ("image-7", "broken on purpose"),
        ("image-150", "broken on purpose"),
    )
    (listed,) = tmp_path.glob("*/bad_images.csv")
    assert list(csv.reader(listed.open())) == [["image", "reason"], *map(list, store.bad)]
    assert sorted(path.name for path in listed.parent.iterdir()) == [
        "bad_images.csv", "centres.npy", "duplicates.npy", "groups.npy", "image_ids.npy",
        "images.npy", "labels.npy", "store.json", "units.npy",
    ]  # fmt: skip


def crash(at: tuple[int, ...], index: int) -> np.ndarray:
    if index in at:
        os.abort()  # as a codec in C may
    return tile(frozenset(), index)


def test_an_image_that_ends_its_decoders_process_is_a_bad_image(tmp_path: Path) -> None:
    given = dataclasses.replace(source(80), load=partial(crash, (3, 5)), isolated=True)
    store = prepare(given, LENIENT, tmp_path, workers=1)
    assert store.bad == (
        ("image-3", "the decoder crashed on it"),
        ("image-5", "the decoder crashed on it"),
    )
    good = [index for index in range(80) if index not in (3, 5)]
    assert store.images[:, 0, 0, 0].tolist() == good


def test_too_many_bad_images_name_count_first_and_list(tmp_path: Path) -> None:
    given = source(100, frozenset({3, 50}))
    with pytest.raises(UserError, match=r"2 of 100 .* image-3 \(broken on purpose\)") as caught:
        prepare(given, SETTINGS, tmp_path)
    (listed,) = tmp_path.glob("*/bad_images.csv")
    assert str(listed) in str(caught.value)
    assert "image-50" in listed.read_text()
    assert not list(tmp_path.rglob("*.npy"))

    assert len(prepare(given, LENIENT, tmp_path).image_ids) == 98
    with pytest.raises(UserError, match="2 of 100"):
        prepare(given, SETTINGS, tmp_path)


def test_all_images_bad_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    lenient = SETTINGS.model_copy(update={"max_bad_fraction": 1.0})
    with pytest.raises(UserError, match="2 of 2"):
        prepare(source(2, frozenset({0, 1})), lenient, tmp_path)


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from mediffusion_core.data import Source, prepare
from mediffusion_core.settings import DataSettings

def load(index):
    time.sleep(float(sys.argv[2]))
    return np.full((20, 24), index % 251, np.uint8)

source = Source("medmnist", ("a",), True, tuple(map(str, range(80))),
                np.zeros((80, 1), np.float32), tuple(map(str, range(80))), None, load, "f")
{guard}
    settings = DataSettings(source="medmnist", image_size=16, channels=1)
    tell = lambda *step: print(*step, flush=True)
    store = prepare(source, settings, Path(sys.argv[1]), tell, workers=int(sys.argv[3]))
    print("sum", int(store.images[:, 0, 0, 0].sum()), flush=True)
"""


def script(tmp_path: Path, guard: str) -> Path:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT).replace("{guard}", guard))
    return path


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_killed_in_the_middle_then_run_again(tmp_path: Path) -> None:
    path, folder = script(tmp_path, "if __name__ == '__main__':"), tmp_path / "stores"
    command = [sys.executable, str(path), str(folder)]
    with subprocess.Popen(
        [*command, "0.02", "2"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment(),
    ) as killed:  # fmt: skip
        assert killed.stdout is not None
        assert killed.stdout.readline().endswith(" 80\n")
        killed.send_signal(signal.SIGKILL)
    assert list(folder.glob("*.building-*"))
    assert not list(folder.glob("medmnist-16-" + "[0-9a-f]" * 16))

    done = subprocess.run(
        [*command, "0", "1"], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.stdout.splitlines()[-1] == f"sum {sum(range(80))}"
    assert not list(folder.glob("*.building-*"))


def test_a_script_without_its_guard_decodes_in_its_one_process(tmp_path: Path) -> None:
    """The pool can't start: each of its processes runs the script again."""
    command = [sys.executable, str(script(tmp_path, "if True:")), str(tmp_path / "stores"), "0"]
    done = subprocess.run(
        [*command, "2"], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.stdout.splitlines()[-1] == f"sum {sum(range(80))}"


def test_two_at_once_build_once(tmp_path: Path) -> None:
    loaded: list[int] = []

    def load(index: int) -> np.ndarray:
        loaded.append(index)
        return tile(frozenset(), index)

    given = dataclasses.replace(source(60), load=load)
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda _: prepare(given, SETTINGS, tmp_path, workers=1), range(3)))
    assert sorted(loaded) == list(range(60))
    assert all(np.array_equal(store.images, stores[0].images) for store in stores)


def _prepare_two_workers(folder: Path) -> None:
    assert len(prepare(source(100), SETTINGS, folder, workers=2).image_ids) == 100


def test_daemonic_process_decodes_without_a_pool(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(
        target=_prepare_two_workers, args=(tmp_path,), daemon=True
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_damaged_store_is_named(tmp_path: Path) -> None:
    prepare(source(4), SETTINGS, tmp_path)
    (column,) = tmp_path.glob("*/labels.npy")
    column.write_bytes(b"no array")
    with pytest.raises(UserError, match=r"damaged.*delete it"):
        prepare(source(4), SETTINGS, tmp_path)


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data.store=.*file"):
        prepare(source(4), SETTINGS, tmp_path / "file" / "stores")


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FED_MEDIFFUSION_STORE", str(tmp_path / "own"))
    assert default_store_folder() == tmp_path / "own"
    monkeypatch.delenv("FED_MEDIFFUSION_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_store_folder() == tmp_path / "cache" / "fed-mediffusion"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_store_folder() == tmp_path / ".cache" / "fed-mediffusion"
