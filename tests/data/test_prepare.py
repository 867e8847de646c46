"""Preparation of data sets: downloads, rebuilds, locks and names."""

import collections
import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.data import prepare
from segdiff_jax.data.builders.isic import isic_dataset_builder
from segdiff_jax.data.groups import Groups
from segdiff_jax.data.prepare import load_source, load_training_source
from segdiff_jax.data.records import Rules
from segdiff_jax.data.splits import fold_of, has_training_images, hashed_split
from segdiff_jax.runtime.errors import UserError

REPOSITORY = Path(__file__).parents[2]
IDS = [f"ISIC_{i:07d}" for i in (0, 1, 2, 11, 26)]  # The last two are in validation.
ISIC_2016 = functools.partial(load_source, "isic/2016")
ARCHIVES = [
    f"ISBI2016_ISIC_Part1_{part}_{kind}"
    for part in ("Training", "Test")
    for kind in ("Data", "GroundTruth")
]


def write_2016(folder, ids=IDS, masked=None):
    """All archives of 2016: `ids` for training, with masks for `masked`, and one test image."""
    test = ["ISIC_0000003"]
    for name, members in zip(ARCHIVES, (ids, masked or ids, test, test), strict=True):
        write_archive(folder, name, members)


def write_archive(folder, name, ids):
    """Images of 4 x 4 pixels, each of its own grey, or masks if the name ends with GroundTruth."""
    folder.mkdir(parents=True, exist_ok=True)
    is_mask = name.endswith("GroundTruth")
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for id in ids:
            buffer, grey = io.BytesIO(), np.zeros((4, 4), np.uint8)
            grey[:2] = 255 if is_mask else zlib.crc32(id.encode()) % 256
            Image.fromarray(grey).save(buffer, "PNG" if is_mask else "JPEG")
            file = f"{id}_Segmentation.png" if is_mask else f"{id}.jpg"
            archive.writestr(f"{name}/{file}", buffer.getvalue())


@pytest.fixture
def server(tmp_path):
    """Base URL of a server of tmp_path/www."""
    handler = functools.partial(QuietHandler, directory=tmp_path / "www")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_downloads_fall_back_to_the_older_host(tmp_path, server, monkeypatch):
    hosts = (f"{server}/new", f"{server}/old")
    monkeypatch.setattr(isic_dataset_builder, "HOSTS", hosts)
    write_2016(tmp_path / "www/old/2016")
    (tmp_path / "www/new/2016").mkdir(parents=True)
    archives = {path.name: path for path in (tmp_path / "www/old/2016").iterdir()}
    good, bad = f"{ARCHIVES[2]}.zip", f"{ARCHIVES[3]}.zip"
    archives[good].rename(tmp_path / "www/new/2016" / good)
    (tmp_path / "www/new/2016" / bad).write_text("<html>an error page</html>")
    (tmp_path / "empty").mkdir()
    assert len(ISIC_2016("train", tmp_path / "data", tmp_path / "empty")) == 3
    assert len(ISIC_2016("test", tmp_path / "data")) == 1
    record = json.loads((tmp_path / "data/isic/2016/1.0.0/metadata.json").read_text())
    assert record["sources"].keys() == {name.removesuffix(".zip") for name in archives}
    infos = (tmp_path / "data/downloads/isic").rglob("*.INFO")
    used = {url for path in infos for url in json.loads(path.read_text())["urls"]}
    old = {f"{server}/old/2016/{name}" for name in archives if name != good}
    assert used == old | {f"{server}/new/2016/{good}"}


def test_failed_downloads_say_what_to_put_where(tmp_path, server, monkeypatch):
    hosts = (f"{server}/new", f"{server}/old")
    monkeypatch.setattr(isic_dataset_builder, "HOSTS", hosts)
    (tmp_path / "www").mkdir()
    with pytest.raises(UserError, match="manual_dir") as error:
        ISIC_2016("train", tmp_path / "data")
    for text in (
        f"{ARCHIVES[0]}.zip could not be downloaded",
        *(f"{host}/2016/{ARCHIVES[0]}.zip: 404" for host in hosts),
        *(f"  {name}.zip" for name in ARCHIVES),
    ):
        assert text in str(error.value)
    left = {path.name for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert left == {".isic_2016_1.0.0.lock", "metadata.json"}  # The default config's name.


def test_rebuilds_when_the_archives_change(tmp_path, capsys):
    manual, data_dir = tmp_path / "manual", tmp_path / "data"
    write_2016(manual)
    assert len(ISIC_2016("train", data_dir, manual)) == 3
    record = json.loads((data_dir / "isic/2016/1.0.0/metadata.json").read_text())
    assert {name: source["files"] for name, source in record["sources"].items()} == dict.fromkeys(
        ARCHIVES, 1
    )
    said = capsys.readouterr().out
    assert "isic/2016/1.0.0 is built from\n" in said and f"{ARCHIVES[0]}.zip\n" in said
    capsys.readouterr()
    ISIC_2016("train", data_dir, manual)
    ISIC_2016("train", data_dir)
    assert "building" not in capsys.readouterr().out

    write_2016(manual, [*IDS, "ISIC_0000004"])
    assert len(ISIC_2016("train", data_dir)) == 3
    assert len(ISIC_2016("train", data_dir, manual)) == 4
    assert (
        "built of other files or groups, or by an older version: building again"
        in capsys.readouterr().out
    )

    write_2016(manual, masked=IDS[1:])
    with pytest.raises(UserError, match="image without mask"):
        ISIC_2016("train", data_dir, manual)
    assert len(ISIC_2016("train", data_dir)) == 4  # A failed rebuild keeps the former one.


def test_the_fingerprint_is_that_of_the_build_and_the_split(tmp_path):
    manual = tmp_path / "manual"
    write_2016(manual)
    fingerprints = [
        ISIC_2016(split, tmp_path / data, manual).fingerprint
        for split, data in (("train", "a"), ("train", "a"), ("test", "a"), ("train", "b"))
    ]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3
    write_2016(manual, [*IDS, "ISIC_0000004"])
    assert ISIC_2016("train", tmp_path / "a", manual).fingerprint not in fingerprints


def test_a_built_data_set_outlives_its_archives(tmp_path, capsys):
    archives = tmp_path / "archives"
    write_2016(archives)
    built = ISIC_2016("train", data_dir=tmp_path / "data", manual_dir=archives)
    shutil.rmtree(archives)
    again = ISIC_2016("train", data_dir=tmp_path / "data", manual_dir=archives)
    assert [again[i] for i in range(3)] == [built[i] for i in range(3)]
    assert f"{archives} is not there; reading {tmp_path / 'data'}" in capsys.readouterr().out


def test_a_killed_build_is_done_again(tmp_path):
    write_2016(tmp_path / "manual")
    left_over = tmp_path / "data/isic/2016/incomplete.ABCDEF_1.0.0"
    left_over.mkdir(parents=True)
    assert len(ISIC_2016("train", tmp_path / "data", tmp_path / "manual")) == 3
    assert not left_over.exists()


BUILD = """
import sys
from segdiff_jax.data.prepare import load_source
print(len(load_source("isic/2016", "train", *sys.argv[1:])), "tensorflow" in sys.modules)
"""


def test_two_processes_build_once_and_without_tensorflow(tmp_path):
    write_2016(tmp_path / "manual")
    command = [sys.executable, "-c", BUILD, tmp_path / "data", tmp_path / "manual"]
    start = functools.partial(subprocess.Popen, command, cwd=REPOSITORY, text=True)
    processes = [start(stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert [output.splitlines()[-1] for output in outputs] == ["3 False"] * 2
    assert "".join(outputs).count("Downloading and preparing") == 1


def test_a_build_that_another_process_finishes_first(tmp_path, monkeypatch):
    archives, data_dir = tmp_path / "manual", tmp_path / "data"
    write_2016(archives)
    is_current, calls = prepare._is_current, []

    def after_the_other(*args):
        calls.append(args)
        if len(calls) == 1:  # The builder is made and has found nothing; now the other builds.
            ISIC_2016("train", data_dir, archives)
        return is_current(*args)

    monkeypatch.setattr(prepare, "_is_current", after_the_other)
    assert len(ISIC_2016("train", data_dir, archives)) == 3


@pytest.mark.parametrize(
    ("dataset", "manual_dir", "message"),
    [
        (
            "isik",
            None,
            "'isik' is unknown; there are cityscapes_instances, cvc_clinicdb, isic",
        ),
        ("isic/2015", None, "there are isic/2016, isic/2017, isic/2018"),
        ("isic/2016", "/no/such", "manual_dir='/no/such' is not a folder"),
    ],
)
def test_unknown_names(tmp_path, dataset, manual_dir, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_source(dataset, "train", tmp_path, manual_dir)


def write_2017(folder, ids):
    for kind in ("Data", "Part1_GroundTruth"):
        write_archive(folder, f"ISIC-2017_Training_{kind}", ids)


def load_with_extra(root, *extra):
    return load_training_source("isic/2016", extra, root / "data", root / "archives")


def test_extra_training_images_leave_out_every_known_id(tmp_path):
    """2017 lies beside 2016 in a folder of folders and shares three ids; one is of no split."""
    write_2016(tmp_path / "archives/2016")
    shared = [IDS[0], "ISIC_0000003", "ISIC_0000026"]  # In train, test and validation.
    new = ["ISIC_0000004", "ISIC_0000005", "ISIC_0000032"]  # The last is 2017's validation.
    write_2017(tmp_path / "archives/2017", shared + new)
    names = lambda records: sorted(record["id"].decode() for record in records)
    assert names(load_with_extra(tmp_path)) == IDS[:3]
    more = load_with_extra(tmp_path, "isic/2017")
    assert more.fingerprint != load_with_extra(tmp_path).fingerprint
    assert more.fingerprint == load_with_extra(tmp_path, "isic/2017").fingerprint
    assert names(more) == [*IDS[:3], *new]
    assert Image.open(io.BytesIO(more[4]["image"])).size == (4, 4)
    with pytest.raises(UserError, match="data.extra_datasets='isic/2020' is unknown"):
        load_with_extra(tmp_path, "isic/2020")


def test_extra_images_that_are_copies_or_of_a_group_that_is_held_out_are_left_out(tmp_path, capsys):
    """Of 2017's images, one has the bytes of a test image, and one is of a validation's group."""
    write_2016(tmp_path / "archives")
    write_2017(tmp_path / "archives", [f"ISIC_{id:07d}" for id in (3, 4, 5, 32)])
    archive = tmp_path / "archives/ISIC-2017_Training_Data.zip"
    with zipfile.ZipFile(archive) as file:
        contents = [file.read(name) for name in sorted(file.namelist())]
    with zipfile.ZipFile(archive, "w") as file:
        for id, content in zip((6, 4, 5, 32), contents, strict=True):
            file.writestr(f"ISIC_{id:07d}.jpg", content)
    masks = archive.with_name("ISIC-2017_Training_Part1_GroundTruth.zip")
    masks.unlink()
    write_archive(tmp_path / "archives", masks.stem, [f"ISIC_{id:07d}" for id in (4, 5, 6, 32)])
    table = tmp_path / "lesions.csv"
    table.write_text("id,group\nISIC_0000011,mole\nISIC_0000005,mole\nISIC_0000000,spot\n")
    names = lambda records: sorted(record["id"].decode() for record in records)
    assert names(load_with_extra(tmp_path, "isic/2017"))[3:] == [
        "ISIC_0000004",
        "ISIC_0000005",
        "ISIC_0000032",
    ]
    said = "isic/2017: 3 of 4 training images are new and are added"
    assert said in capsys.readouterr().out
    place = tmp_path / "data", tmp_path / "archives", None, Rules(Groups(file=str(table)))
    more = load_training_source("isic/2016", ["isic/2017"], *place)
    assert names(more)[3:] == ["ISIC_0000004", "ISIC_0000032"]


def test_groups_stay_in_one_split_and_other_groups_are_another_build(tmp_path, capsys):
    write_2016(tmp_path / "manual")
    load = lambda split, groups: {
        record["id"].decode()
        for record in ISIC_2016(split, tmp_path / "data", tmp_path / "manual", rules=Rules(groups))
    }
    assert load("validation", Groups()) == {"ISIC_0000011", "ISIC_0000026"}
    pairs = Groups(pattern="[01]$")  # Of the last digit: 0; 1 and 11. The first id decides.
    assert load("validation", pairs) == {"ISIC_0000026"}
    assert load("train", pairs) == {f"ISIC_{i:07d}" for i in (0, 1, 2, 11)}
    assert "building again" in capsys.readouterr().out
    load("train", pairs)
    assert "building again" not in capsys.readouterr().out
    table = tmp_path / "pairs.csv"
    table.write_text("id,group\nISIC_0000001,a\nISIC_0000011,a\n")
    in_file = Groups(file=str(table))
    assert load("validation", in_file) == {"ISIC_0000026"}
    table.write_text("id,group\nISIC_0000001,a\nISIC_0000026,a\n")
    assert load("validation", in_file) == {"ISIC_0000011"}
    table.unlink()
    assert load("validation", in_file) == {"ISIC_0000011"}
    assert "pairs.csv' is not there; the splits stay as they were" in capsys.readouterr().out
    (tmp_path / "manual").rename(tmp_path / "gone")
    table.write_text("id,group\nISIC_0000001,a\nISIC_0000002,a\n")
    place = tmp_path / "data", str(tmp_path / "manual"), None, Rules(in_file)
    with pytest.raises(UserError, match="is not a folder, and .* was built of other groups or"):
        ISIC_2016("train", *place)
    with pytest.raises(UserError, match="'synthetic_lesions/small' has no groups"):
        load_source("synthetic_lesions/small", "train", tmp_path, rules=Rules(pairs))


def test_extra_images_without_a_test_split_are_warned_of(tmp_path, capsys):
    write_2016(tmp_path / "archives")
    for name in ARCHIVES[2:]:
        (tmp_path / f"archives/{name}.zip").unlink()
    write_2017(tmp_path / "archives", ["ISIC_0000004", "ISIC_0000032"])
    load_with_extra(tmp_path, "isic/2017")
    assert "isic/2016 has no test split here" in capsys.readouterr().out


def load_fold(root, fold, folds=3, split="validation", pattern=""):
    rules = Rules(Groups(pattern=pattern), folds=folds, fold=fold)
    records = ISIC_2016(split, root / "data", root / "archives", rules=rules)
    return [record["id"].decode() for record in records]


def test_every_training_image_is_held_out_in_one_fold(tmp_path):
    ids = [f"ISIC_{i:07d}" for i in range(40) if i != 3]
    write_2016(tmp_path / "archives", ids)
    held = [load_fold(tmp_path, fold) for fold in range(3)]
    assert sorted(id for of_fold in held for id in of_fold) == ids
    assert [len(of_fold) for of_fold in held] == [13, 7, 19]
    for fold, of_fold in enumerate(held):
        trained = load_fold(tmp_path, fold, split="train")
        assert sorted(trained + of_fold) == ids
        assert load_fold(tmp_path, fold, split="test") == ["ISIC_0000003"]
    usual = ISIC_2016("validation", tmp_path / "data")
    opened = [
        ISIC_2016(split, tmp_path / "data", rules=Rules(folds=3, fold=fold))
        for fold in (0, 1)
        for split in ("train", "validation")
    ]
    assert len({records.fingerprint for records in opened} | {usual.fingerprint}) == 5
    assert len({records.members for records in opened}) == 4


def test_folds_are_equal_where_the_same_hash_has_made_a_test_split():
    ids = [f"IMD{i:03d}" for i in range(2000)]
    kept = [id for id in ids if hashed_split(id) != "test"]
    counts = collections.Counter(fold_of(id, 10) for id in kept)
    assert sorted(counts) == list(range(10))
    assert min(counts.values()) > 120 and max(counts.values()) < 200  # 160 each, on average.


def test_images_of_a_group_and_copies_share_a_fold(tmp_path, capsys):
    ids = [f"ISIC_{i:07d}" for i in range(10, 60)]
    write_2016(tmp_path / "archives", ids)
    archive = tmp_path / f"archives/{ARCHIVES[0]}.zip"
    with zipfile.ZipFile(archive) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(archive, "w") as file:  # Those of 58 and 59 are copies of 57's.
        for name, content in contents.items():
            copy = contents[f"{ARCHIVES[0]}/ISIC_0000057.jpg"]
            file.writestr(name, copy if name[-5] in "89" and "005" in name else content)
    held = [load_fold(tmp_path, fold, 2) for fold in range(2)]
    assert sorted(held[0] + held[1]) == ids
    last = {fold_of(id, 2) for id in ids[-3:]}
    assert len(last) == 2  # Alone, they would be in two folds.
    assert sum(bool({*ids[-3:]} & {*of_fold}) for of_fold in held) == 1
    held = [load_fold(tmp_path, fold, 2, pattern="ISIC_(......)") for fold in range(2)]
    assert sorted(held[0] + held[1]) == ids
    tens = [{id[:-1] for id in of_fold} for of_fold in held]
    assert tens[0] and tens[1] and not tens[0] & tens[1]
    capsys.readouterr()
    # A build of an older version does not say which images belong together.
    path = tmp_path / "data/isic/2016/1.0.0/metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in metadata.items() if k != "joined"}))
    ISIC_2016("train", tmp_path / "data", rules=Rules(Groups(pattern="ISIC_(......)")))
    assert "building again" not in capsys.readouterr().out
    assert load_fold(tmp_path, 1, 2, pattern="ISIC_(......)") == held[1]
    assert "by an older version: building again" in capsys.readouterr().out


def test_a_fold_without_images_and_a_part_of_a_fold_are_refused(tmp_path):
    write_2016(tmp_path / "archives")
    for fold in range(3):
        with pytest.raises(
            UserError, match="data.folds=3: no image of isic/2016/1.0.0 is in fold 0"
        ):
            load_fold(tmp_path, fold)
    for split in ("train[50%:]", "all", "test+validation"):
        with pytest.raises(UserError, match=r"split '.*': with data.folds, give 'train' or 'vali"):
            load_fold(tmp_path, 1, split=split)
    assert not has_training_images("official_validation") and not has_training_images("test[:2]")


def test_extra_images_leave_out_the_fold(tmp_path):
    write_2016(tmp_path / "archives")
    write_2017(tmp_path / "archives", [IDS[0], IDS[3], "ISIC_0000004", "ISIC_0000032"])
    for fold in (0, 1):
        rules, place = Rules(folds=2, fold=fold), (tmp_path / "data", tmp_path / "archives", None)
        records = load_training_source("isic/2016", ["isic/2017"], *place, rules)
        trained = [record["id"].decode() for record in records]
        assert not {*trained} & {*load_fold(tmp_path, fold, 2)}
        assert trained[-2:] == ["ISIC_0000004", "ISIC_0000032"]
        assert len(trained) == 7 - len(load_fold(tmp_path, fold, 2))
        assert records.extra == 2
