"""Training on one's own folder: pairs, problems, statistics, and both commands' data."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdiff_jax.data.builders.paired_folder.paired_folder_dataset_builder import Builder
from segdiff_jax.data.folder import Folder
from segdiff_jax.data.groups import Groups
from segdiff_jax.data.prepare import load_source, where
from segdiff_jax.data.records import Rules
from segdiff_jax.data.splits import hold_out, is_validation
from segdiff_jax.data.statistics import Statistics, format_statistics
from segdiff_jax.evaluation.evaluate import evaluate
from segdiff_jax.evaluation.examples import NativeExamples
from segdiff_jax.evaluation.outputs import TRUTH_COLOUR
from segdiff_jax.evaluation.overview import contact_sheet
from segdiff_jax.inference.load import load
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.training.loop import train

NAMES = ["a", "b", "c", "f", "g", "h"]  # None of them is in validation by its hash alone.


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def half(size, value=255):
    """u8[size], `value` in the left half, 0 in the right one."""
    mask = np.zeros(size, np.uint8)
    mask[:, : size[1] // 2] = value
    return mask


@pytest.fixture
def mine(tmp_path):
    """Folders of six images of other sizes, formats and modes, and of their masks of 0 and 255."""
    rng = np.random.default_rng(0)
    for i, (name, suffix) in enumerate(zip(NAMES, ["png", "jpg", "bmp", "tif", "webp", "png"])):  # noqa: B905
        shape = (20 + i, 30) if name == "h" else (20 + i, 30, 3)
        write(tmp_path / f"images/{name}.{suffix}", rng.integers(0, 256, shape, np.uint8))
        write(tmp_path / f"masks/{name}_mask.png", half((20 + i, 30)))
    return Folder(str(tmp_path / "images"), str(tmp_path / "masks"))


def load_mine(mine, split="train+validation"):
    return load_source("paired_folder", split, mine_data(mine), None, mine)


def mine_data(mine):
    return str(Path(mine.images).parent / "data")


def build_error(mine):
    with pytest.raises(UserError, match=r"paired_folder/\w+/1.0.0 cannot be built") as error:
        load_mine(mine)
    return str(error.value).replace(mine.images[: -len("images")], "").splitlines()[1:]


def decoded_mask(record):
    return np.asarray(Image.open(io.BytesIO(record["mask"])))


def test_images_keep_their_bytes_and_a_tenth_is_held_out(mine):
    records = {r["id"].decode(): r for r in load_mine(mine)}
    assert sorted(records) == NAMES and not any(map(is_validation, NAMES))
    (held,) = load_mine(mine, "validation")
    assert held["id"].decode() == hold_out(NAMES)["validation"][0]
    assert len(load_mine(mine, "train")) == 5
    for i, name in enumerate(NAMES):
        (path,) = (p for p in Path(mine.images).iterdir() if p.stem == name)
        assert records[name]["image"] == path.read_bytes()
        assert (records[name]["height"], records[name]["width"]) == (20 + i, 30)
        assert np.array_equal(decoded_mask(records[name]), half((20 + i, 30)))


@pytest.mark.parametrize("value", [1, 2, 254])
def test_masks_may_have_any_other_value_than_0(mine, tmp_path, value):
    for i, name in enumerate(NAMES):
        write(tmp_path / f"masks/{name}_mask.png", half((20 + i, 30), value))
    write(tmp_path / "masks/a_mask.png", np.zeros((20, 30), np.uint8))
    records = {r["id"].decode(): decoded_mask(r) for r in load_mine(mine)}
    assert not records["a"].any()
    assert np.array_equal(records["b"], half((21, 30)))


def test_other_endings_of_the_masks_names(mine, tmp_path):
    for name in NAMES:
        path = tmp_path / f"masks/{name}_mask.png"
        path.rename(path.with_name(f"{name}_lesion.png"))
    lines = build_error(mine)
    assert lines[0] == "image without a mask of its own (6):"
    masks = f"{mine.masks}: it would have the image's name, with or without _Segmentation or _mask"
    assert lines[1].endswith(masks.replace(str(tmp_path) + "/", ""))
    assert len(load_mine(mine._replace(mask_endings=("_lesion",)))) == 6


def test_all_problems_are_listed_at_once(mine, tmp_path):
    (tmp_path / "masks/a_mask.png").rename(tmp_path / "masks/other.png")
    write(tmp_path / "masks/b_mask.png", half((5, 30)))
    (tmp_path / "images/c.bmp").write_bytes(b"text")
    labels = half((23, 30))
    labels[0, :3] = 1, 2, 3
    write(tmp_path / "masks/f_mask.png", labels)
    write(tmp_path / "masks/g_mask.png", half((24, 30), 7))
    assert build_error(mine) == [
        "image without a mask of its own (1):",
        "  images/a.png: no mask in masks: it would have the image's name, with or without "
        "_Segmentation or _mask",
        "mask without image (1):",
        "  masks/other.png",
        "image and mask of different sizes (1):",
        "  images/b.jpg: image 21 x 30, mask 5 x 30",
        "unreadable file (2):",
        "  images/c.bmp: cannot be decoded as an image (of no known format): replace the file or "
        "remove it",
        "  masks/f_mask.png: the mask has 5 values (0, 1, 2, 3, 255): make it 0 and one other "
        "value, or, if it has several classes, name them in data.classes; JPEG blurs masks, save "
        "them as PNG",
        "mask of another value than most; to use several classes, name them in data.classes (1):",
        "  masks/g_mask.png: 7, not 255",
    ]
    assert not list(tmp_path.glob("data/paired_folder/*/*/*.json"))


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (Folder("", "masks"), "data.images is not given: data.dataset='paired_folder' needs"),
        (Folder("images", ""), "data.masks is not given"),
        (None, "data.images is not given"),
        (Folder("/no/such", "masks"), "data.images='/no/such' is not a folder"),
    ],
)
def test_folders_that_are_not_there_are_named(tmp_path, folder, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_source("paired_folder", "train", tmp_path, None, folder)


def test_a_missing_folder_of_masks_and_a_single_pair(mine, tmp_path):
    with pytest.raises(UserError, match="data.masks=.*nowhere. is not a folder"):
        load_mine(mine._replace(masks=str(tmp_path / "nowhere")))
    for name in NAMES[1:]:
        for path in tmp_path.glob(f"*/{name}[._]*"):
            path.unlink()
    kind, line = build_error(mine)
    assert kind.startswith("too few pairs") and line == "  a"


def test_it_is_built_again_when_a_file_changes(mine, tmp_path, capsys):
    first = load_mine(mine)
    assert load_mine(mine).fingerprint == first.fingerprint
    assert "building again" not in capsys.readouterr().out
    write(tmp_path / "masks/a_mask.png", half((20, 30))[:, ::-1])  # Of the same size in bytes.
    second = {r["id"].decode(): decoded_mask(r) for r in load_mine(mine)}
    assert np.array_equal(second["a"], half((20, 30))[:, ::-1])
    assert "building again" in capsys.readouterr().out
    (tmp_path / "images").rename(tmp_path / "gone")
    assert len(load_mine(mine)) == 6
    assert "images is not there; reading" in capsys.readouterr().out


def test_copies_and_groups_share_a_split_and_are_counted(mine, tmp_path, capsys):
    held = hold_out(NAMES)["validation"][0]
    (image,) = (tmp_path / "images").glob(f"{held}.*")
    for name in ("copy 1", "copy 2"):
        shutil.copy(image, tmp_path / f"images/{name}{image.suffix}")
        shutil.copy(tmp_path / f"masks/{held}_mask.png", tmp_path / f"masks/{name}.png")
    groups = {
        split: {record["id"].decode() for record in load_mine(mine, split)}
        for split in ("train", "validation")
    }
    copies = {held, "copy 1", "copy 2"}
    assert any(copies <= ids for ids in groups.values())
    assert "copies of other images: 2; copies share a split" in capsys.readouterr().out
    load = lambda split: {
        record["id"].decode()
        for record in load_source("paired_folder", split, mine_data(mine), None, mine, rules)
    }
    table = tmp_path / "patients.csv"
    table.write_text("id,group\n" + "".join(f"{name},{name > 'c'}\n" for name in NAMES))
    rules = Rules(Groups(file=str(table)))
    assert {frozenset(load(split) & {*NAMES}) for split in ("train", "validation")} == {
        frozenset("abc"),
        frozenset("fgh"),
    }


def test_linked_folders_are_read_and_what_is_not_looked_at_is_counted(mine, tmp_path, capsys):
    for name in ("images", "masks"):
        (tmp_path / name).rename(tmp_path / f"my {name}")
        (tmp_path / name).mkdir()
        (tmp_path / name / "2024").symlink_to(tmp_path / f"my {name}")
    (tmp_path / "my images/photo.jfif").write_bytes(b"x")
    assert {r["id"].decode() for r in load_mine(mine)} == {f"2024/{name}" for name in NAMES}
    said = capsys.readouterr().out
    assert "images: files with other endings, not looked at: 1 (1 .jfif)" in said
    (tmp_path / "images/z.png").symlink_to("nowhere.png")
    (tmp_path / "masks/z.png").symlink_to("nowhere.png")
    kind, *lines = build_error(mine)
    assert kind == "unreadable file (2):"
    assert lines[0].startswith(
        "  images/z.png: images/z.png is a link to nowhere.png, which is not"
    )


def test_lack_of_memory_is_no_fault_of_a_file(mine, monkeypatch):
    def load(self):
        raise MemoryError("Unable to allocate 3 GiB")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(
        MemoryError, match=r"images/a.png: not enough memory \(Unable to allocate 3"
    ):
        load_mine(mine)


def test_two_folders_are_two_builds(mine, tmp_path):
    load_mine(mine)
    (tmp_path / "other").mkdir()
    for name in ("images", "masks"):
        (tmp_path / name).rename(tmp_path / "other" / name)
    other = Folder(str(tmp_path / "other/images"), str(tmp_path / "other/masks"))
    assert len(load_source("paired_folder", "train", tmp_path / "data", None, other)) == 5
    assert len([p for p in (tmp_path / "data/paired_folder").iterdir() if p.name[0] != "."]) == 2


def test_statistics_of_known_images():
    statistics = Statistics()
    image = np.zeros((2, 4, 3), np.uint8)
    image[..., 0] = [0, 0, 100, 100]
    statistics.add("a", image, half((2, 4)))
    statistics.add("b", np.full((6, 4, 3), 50, np.uint8), np.zeros((6, 4), np.uint8))
    summary = statistics.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["pairs"] == 2 and summary["without_foreground"] == ["b"]
    assert summary["height"] == [2, 2, 6] and summary["width"] == [4, 4, 4]
    assert summary["foreground"] == [0, 0, 0.5] and summary["mean_foreground"] == 0.25
    np.testing.assert_allclose(summary["colour_mean"], [50, 37.5, 37.5])
    np.testing.assert_allclose(summary["colour_std"], [25, 468.75**0.5, 468.75**0.5])
    text = format_statistics(summary)
    assert "2 pairs" in text and "height 2 / 2 / 6, width 4 / 4 / 4 pixels" in text
    assert "0.0% / 0.0% / 50.0% of the mask, 25.0% on average" in text
    assert "without foreground: 1 of 2 (b)" in text


def test_the_sheet_shows_the_outline():
    png = lambda array: [buffer := io.BytesIO(), Image.fromarray(array).save(buffer, "PNG")][0]
    mask = np.zeros((100, 200), np.uint8)
    mask[20:80, 50:150] = 255
    grey = png(np.full((100, 200, 3), 90, np.uint8)).getvalue()
    record = {"id": "ä", "image": grey, "mask": png(mask).getvalue()}
    sheet = contact_sheet([record] * 7)
    assert sheet.shape == (2 * 224, 5 * 208, 3)
    cell = sheet[4:104, 4:204]
    assert (cell[20, 50:150] == TRUTH_COLOUR).all() and (cell[20:80, 149] == TRUTH_COLOUR).all()
    assert (cell[30:70, 60:140] == 90).all() and (cell[:19] == 90).all()


@pytest.mark.slow
def test_it_trains_and_samples(mine, tiny_config, tmp_path, capsys):
    config = tiny_config()
    config.data.dataset, config.data.dir = "paired_folder", mine_data(mine)
    config.data.images, config.data.masks = mine.images, mine.masks
    config.validation.every = 0
    train(config, str(tmp_path / "run"))
    out = capsys.readouterr().out
    assert "6 pairs of image and mask" in out and f"masks: {tmp_path / 'run/data.png'}" in out
    assert "5 training and 1 validation images of paired_folder" in out
    assert np.asarray(Image.open(tmp_path / "run/data.png")).shape == (224, 5 * 208, 3)
    assert (tmp_path / "run/metrics.csv").read_text().count("\n") == 3
    trained = load(tmp_path / "run")
    data = trained.config.data
    records = load_source(data.dataset, "validation", *where(data))
    examples = NativeExamples(records, trained)
    result = evaluate([examples], tmp_path / "out", {}, "title")
    assert result.num_images == 1 and result.metrics["num_images"] == 1 and not result.failures
    assert (tmp_path / "out/report.html").exists()
    other = tmp_path / "other"
    write(other / "x.png", half((9, 9)))
    config.data.images = str(other)
    with pytest.raises(UserError, match="data.images"):
        train(config, str(tmp_path / "run"))


def test_the_builder_describes_itself(mine, tmp_path):
    load_mine(mine)
    (name,) = (n for n, c in Builder.builder_configs.items() if c.folder.images == mine.images)
    builder = Builder(config=name, data_dir=tmp_path / "data")
    assert "two folders" in builder.info.description
    assert builder.info.metadata["sources"]["images"]["files"] == 6
