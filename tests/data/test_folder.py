import os
import re

import pytest

from segdiff_jax.data.folder import FolderSource, files_by_name
from segdiff_jax.runtime.errors import UserError


@pytest.fixture
def folders(tmp_path):
    """folders("images", "a.jpg", "b.png") makes files that hold their own names."""

    def make(folder, *names):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            (tmp_path / folder / name).write_bytes(f"{folder}/{name}".encode())
        return str(tmp_path / folder)

    return make


def test_records_are_sorted_by_id_and_hold_the_files(folders):
    images = folders("images", "c.png", "a.JPG", "B.tiff", "b.2.jpeg", "a-1.png")
    source = FolderSource(images)
    assert [source[i] for i in range(len(source))] == [
        {"id": "B", "image": b"images/B.tiff"},
        {"id": "a", "image": b"images/a.JPG"},
        {"id": "a-1", "image": b"images/a-1.png"},  # though a-1.png comes before a.JPG
        {"id": "b.2", "image": b"images/b.2.jpeg"},
        {"id": "c", "image": b"images/c.png"},
    ]


@pytest.mark.parametrize(
    "mask", ["a.png", "a_segmentation.png", "a_Segmentation.bmp", "a_mask.tif", "A_MASK.png"]
)
def test_each_image_gets_its_own_mask(folders, mask):
    images = folders("images", "a.jpg", "ab.jpg", "b.jpg")
    masks = folders("masks", "b_Segmentation.png", mask, "ab.png", "of_no_image.png")
    source = FolderSource(images, masks)
    assert [source[i]["id"] for i in range(3)] == ["a", "ab", "b"]
    assert [source[i]["image"] for i in range(3)] == [
        b"images/a.jpg",
        b"images/ab.jpg",
        b"images/b.jpg",
    ]
    assert [source[i]["mask"] for i in range(3)] == [
        f"masks/{mask}".encode(),
        b"masks/ab.png",
        b"masks/b_Segmentation.png",
    ]


def test_images_whose_names_differ_in_case_alone_get_their_own_masks(folders):
    images, masks = (
        folders("images", "a.jpg", "A.jpg"),
        folders("masks", "a_mask.png", "A_mask.png"),
    )
    if len(os.listdir(images)) == 1:
        pytest.skip("this file system tells no upper from lower case")
    source = FolderSource(images, masks)
    assert [source[i]["mask"] for i in range(2)] == [b"masks/A_mask.png", b"masks/a_mask.png"]


def test_hidden_and_foreign_files_are_ignored(folders, tmp_path):
    images = folders("images", "a.jpg", ".b.jpg", "._a.png", "notes.txt", "Thumbs.db", "a", "a.csv")
    folders("images/.thumbnails", "d.jpg")
    folders("images/result", "settings.json", "d.jpg")
    folders("images/result/results", "d.jpg")  # So it is an output folder of sample.py.
    folders("images/masks", "a.png")
    assert list(files_by_name(images, f"{images}/masks").files) == ["a"]
    assert len(FolderSource(images, f"{images}/masks")) == 1


def test_folders_in_the_folder(folders):
    images = folders("images", "a.jpg")
    folders("images/x", "a.jpg", "b.png")
    folders("images/x/y", "b.png", "b.jpg")
    source = FolderSource(images)
    assert source.ids == ["a", "x/a", "x/b"]
    assert source[1] == {"id": "x/a", "image": b"images/x/a.jpg"}
    reason = "x/y/b.jpg and x/y/b.png have the same name: rename one"
    assert source.failures == {"x/y/b.png": reason, "x/y/b.jpg": reason}
    masks = folders("masks", "a.png", "b_mask.png")
    folders("masks/x", "a_Segmentation.png")
    found = FolderSource(images, masks)
    assert [found[i]["mask"] for i in range(3)] == [
        b"masks/a.png",
        b"masks/x/a_Segmentation.png",
        b"masks/b_mask.png",  # of no subfolder
    ]


def test_a_mask_of_two_images_is_none(folders):
    images = folders("images", "z.jpg")
    folders("images/p1", "a.jpg")
    folders("images/p2", "a.jpg", "b.jpg")
    source = FolderSource(images, folders("masks", "a.png", "b.png", "z.png"))
    assert source.ids == ["p2/b", "z"]
    reason = "a.png is the mask of 2 images: sort masks into folders, too"
    assert source.failures == {"p1/a.jpg": reason, "p2/a.jpg": reason}
    with pytest.raises(UserError, match="images holds images and masks: put them into two"):
        FolderSource(images, images)


def test_a_pattern_passes_over_what_a_folder_does(folders):
    images = folders("images", "a.png")
    for folder in ("out", "out/results", "out/masks", ".hidden", "x", "masks"):
        folders(f"images/{folder}", "b.png", "settings.json")
    pattern = f"{images}/**/*.png"
    assert FolderSource(pattern).ids == ["a", "masks/b", "x/b"]
    assert FolderSource(pattern, f"{images}/masks").unmasked.keys() == {"a.png"}


def test_a_file_and_a_pattern(folders):
    images = folders("images", "a.jpg", "b.jpg", "c.png", "c.txt")
    folders("images/x", "d.jpg")
    assert FolderSource(f"{images}/b.jpg").ids == ["b"]
    assert FolderSource(f"{images}/*.jpg").ids == ["a", "b"]
    assert FolderSource(f"{images}/**/*.jpg").ids == ["a", "b", "x/d"]
    assert FolderSource(f"{images}/[bc].*").ids == ["b", "c"]
    with pytest.raises(UserError, match=r"\*\.gif holds no images"):
        FolderSource(f"{images}/*.gif")


def test_rejects_a_missing_folder(folders, tmp_path):
    images = folders("images", "a.jpg")
    with pytest.raises(UserError, match="nowhere is no folder, file or pattern"):
        FolderSource(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nomasks is no folder, file"):
        FolderSource(images, str(tmp_path / "nomasks"))


def test_rejects_a_folder_without_images(folders):
    images = folders("images", "a.jpg")
    with pytest.raises(UserError, match=r"empty holds no images \(\.jpg, .*\.png"):
        FolderSource(folders("empty", "readme.txt", ".a.png"))
    with pytest.raises(UserError, match="masks holds no images"):
        FolderSource(images, folders("masks"))


def records(source):
    return [source[i]["id"] for i in range(len(source))]


def test_two_files_of_one_name_are_failures_and_the_rest_is_read(folders):
    images = folders("images", "a.jpg", "b.jpg", "b.tif", "c.png")
    source = FolderSource(images)
    assert records(source) == ["a", "c"]
    reason = "b.jpg and b.tif have the same name: rename one"
    assert source.failures == {"b.jpg": reason, "b.tif": reason}


def test_images_without_a_mask_are_read_without_one(folders):
    images = folders("images", "a.jpg", "b.jpg", "c.jpg")
    masks = folders("masks", "b.png", "a_lesion.png", "cc_mask.png")
    source = FolderSource(images, masks)
    assert records(source) == ["a", "b", "c"] and not source.failures
    assert source[0] == {"id": "a", "image": b"images/a.jpg"}
    assert source[1]["mask"] == b"masks/b.png"
    assert [path.name for path in source.unused] == ["a_lesion.png", "cc_mask.png"]
    reason = f"no mask in {masks}: it would have the image's name, with or without _Segm"
    assert list(source.unmasked) == ["a.jpg", "c.jpg"]
    assert all(of.startswith(reason) for of in source.unmasked.values())


@pytest.mark.parametrize("second", ["b_Segmentation.png", "b.tif"])
def test_two_masks_of_one_image_are_a_failure_and_the_rest_is_read(folders, second):
    images = folders("images", "a.jpg", "b.jpg")
    source = FolderSource(images, folders("masks", "a.png", "b.png", second))
    assert records(source) == ["a"]
    reason = source.failures["b.jpg"]
    assert reason.startswith(f"two masks: b.png and {second}: remove one or, if annotators drew")


def test_names_with_spaces_and_letters_in_either_unicode_form(folders):
    """Some systems write an a with dots as one character, others as two."""
    one, two = "Fleck \u00e4 \u4e2d", "Fleck a\u0308 \u4e2d"
    for ours, its_mask in ((one, two), (two, one)):
        images, masks = (
            folders(f"i{ours}", f"{ours}.jpg"),
            folders(f"m{ours}", f"{its_mask}_mask.png"),
        )
        source = FolderSource(images, masks)
        assert records(source) == [one] and source.failures == {}
        assert source[0]["mask"].decode() == f"m{ours}/{its_mask}_mask.png"


def test_images_whose_names_differ_in_unicode_form_alone_are_failures(folders):
    names = ("a\u0308.jpg", "\u00e4.jpg")
    images = folders("images", *names, "b.jpg")
    if len(os.listdir(images)) == 2:
        pytest.skip("this file system tells no form from the other")
    source = FolderSource(images)
    assert records(source) == ["b"] and sorted(source.failures) == sorted(names)


def test_names_that_are_no_text_are_failures_and_the_rest_is_read(folders):
    images = folders("images", "a.jpg")
    with open(os.fsencode(images) + b"/Fl\xe4che.jpg", "wb"):
        pass
    source = FolderSource(images)
    assert records(source) == source.ids == ["a"]
    assert source.failures == {"Fl\\xe4che.jpg": "its name is not Unicode: rename it"}


def test_a_mask_in_a_folder_of_another_name_is_found_where_no_other_has_its_name(folders):
    images, masks = folders("images", "d.jpg"), folders("masks", "d.png")
    for tree, names in {"p1": ("a.jpg", "c.jpg", "e.jpg"), "p2": ("a.jpg", "b.jpg")}.items():
        folders(f"images/{tree}", *names)
    folders("masks/q1", "A_mask.png", "B_mask.png", "c.png")
    folders("masks/p2", "a.png")
    folders("masks/q2", "c_mask.png")
    source = FolderSource(images, masks)
    assert {source[i]["id"]: source[i].get("mask") for i in range(len(source))} == {
        "d": b"masks/d.png",
        "p1/a": None,  # p2/a has the name, too.
        "p1/e": None,
        "p2/a": b"masks/p2/a.png",
        "p2/b": b"masks/q1/B_mask.png",
    }
    assert list(source.failures) == ["p1/c.jpg"]
    assert source.failures["p1/c.jpg"].startswith("two masks: q1/c.png and q2/c_mask.png: ")
    assert list(source.unmasked) == ["p1/a.jpg", "p1/e.jpg"]


def test_folders_that_look_like_patterns_are_folders(folders, tmp_path):
    images = folders("exp [1]", "a.jpg", "b.jpg", "c.png")
    folders("exp [1]/@eaDir", "a.jpg")
    folders("exp [1]/x", "d.jpg")
    assert FolderSource(f"{images}/*.jpg").ids == ["a", "b"]
    assert FolderSource(f"{images}/[bc].*").ids == ["b", "c"]
    assert FolderSource(f"{images}/*/*.jpg").ids == ["x/d"]
    assert FolderSource(f"{images}/**/*.jpg").ids == ["a", "b", "x/d"]


def test_linked_folders_are_followed_but_not_in_circles(folders, tmp_path):
    images = folders("images", "a.jpg")
    folders("elsewhere", "b.jpg")
    folders("elsewhere/deep", "c.jpg")
    (tmp_path / "images/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/here").symlink_to(tmp_path / "images")
    (tmp_path / "elsewhere/deep/up").symlink_to(tmp_path)
    (tmp_path / "elsewhere/again").symlink_to(tmp_path / "elsewhere/deep")
    found = ["a", "linked/again/c", "linked/b", "linked/deep/c"]
    assert FolderSource(images).ids == FolderSource(f"{images}/**/*.jpg").ids == found
    assert FolderSource(f"{images}/**").ids == found
    assert FolderSource(f"{images}/**/deep/*.jpg").ids == ["linked/deep/c"]


def test_links_that_lead_nowhere_are_failures_that_say_so(folders, tmp_path):
    images, masks = folders("images", "a.jpg"), folders("masks", "a.png")
    (tmp_path / "images/b.jpg").symlink_to("../.git/annex/objects/b.jpg")
    (tmp_path / "images/notes.txt").symlink_to("nowhere.txt")
    (tmp_path / "masks/b.png").symlink_to(tmp_path / "gone.png")
    source = FolderSource(images, masks)
    assert source.ids == ["a", "b"] and source[0]["image"] == b"images/a.jpg"
    reason = f"{images}/b.jpg is a link to ../.git/annex/objects/b.jpg, which is not there: get"
    with pytest.raises(FileNotFoundError, match=re.escape(reason)):
        source[1]


def test_files_of_other_endings_are_counted_and_folders_of_thumbnails_passed_over(folders):
    names = "b.jfif", "c.jfif", "d.GIF", "Thumbs.db", "README", ".hidden.gif"
    images, masks = folders("images", "a.jpg", *names), folders("masks", "a.png", "a.npy")
    for folder in ("@eaDir", ".thumbnails", "__MACOSX"):
        folders(f"images/{folder}", "a.jpg", "x.jpg", "y.gif")
        folders(f"masks/{folder}", "a.png")
    source = FolderSource(images, masks)
    assert source.ids == ["a"] and not source.failures and not source.unused
    others = "files with other endings, not looked at"
    assert source.notes == [
        f"{images}: {others}: 5 (2 .jfif, 1 no ending, 1 .db, 1 .gif)",
        f"{masks}: {others}: 1 (1 .npy)",
    ]
    assert FolderSource(f"{images}/*.jpg").notes == []
    with pytest.raises(UserError, match=r"holds no images \(.*\); .* not looked at: 2 .2 .jfif"):
        FolderSource(f"{images}/*.jfif")
