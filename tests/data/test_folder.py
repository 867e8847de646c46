import os

import pytest

from segdiff_jax.data.folder import FolderSource, files_by_stem


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
    (tmp_path / "images" / "deeper").mkdir()
    (tmp_path / "images" / "deeper" / "d.jpg").touch()
    assert list(files_by_stem(images)) == ["a"]
    assert len(FolderSource(images)) == 1


def test_rejects_a_missing_folder(folders, tmp_path):
    images = folders("images", "a.jpg")
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        FolderSource(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"a\.jpg is not a folder"):
        FolderSource(f"{images}/a.jpg")
    with pytest.raises(ValueError, match="nomasks is not a folder"):
        FolderSource(images, str(tmp_path / "nomasks"))


def test_rejects_a_folder_without_images(folders):
    images = folders("images", "a.jpg")
    with pytest.raises(ValueError, match=r"empty holds no images \(\.jpg, .*\.png"):
        FolderSource(folders("empty", "readme.txt", ".a.png"))
    with pytest.raises(ValueError, match="masks holds no images"):
        FolderSource(images, folders("masks"))


@pytest.mark.parametrize("which", ["images", "masks"])
def test_rejects_two_files_of_one_name(folders, which):
    names = {"images": ["a.jpg", "b.jpg"], "masks": ["a.png", "b.png"]}
    names[which].append("b.tif")
    arguments = [folders(name, *files) for name, files in names.items()]
    with pytest.raises(ValueError, match=rf"{which}/b\.(jpg|png) and b\.tif have the same name"):
        FolderSource(*arguments)


def test_rejects_images_without_a_mask_and_names_them(folders):
    images = folders("images", "a.jpg", "b.jpg", "c.jpg")
    masks = folders("masks", "b.png", "a_lesion.png", "cc_mask.png")
    with pytest.raises(ValueError, match=r"masks: no mask for 2 images: a\.jpg, c\.jpg;"):
        FolderSource(images, masks)


def test_rejects_two_masks_of_one_image_and_names_them(folders):
    images = folders("images", "a.jpg", "b.jpg")
    masks = folders("masks", "a.png", "b.png", "b_Segmentation.png")
    with pytest.raises(ValueError, match=r"masks: two masks for b: b\.png and b_Segm.*\.png"):
        FolderSource(images, masks)
