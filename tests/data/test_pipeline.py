import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segdiff_jax.data import pipeline
from segdiff_jax.data.classes import Classes
from segdiff_jax.data.decode import decode_blurred_mask, decode_image, decode_labels, doubt
from segdiff_jax.runtime.errors import UserError

RGB = np.uint8([[[10, 20, 30], [200, 100, 50]], [[0, 255, 127], [128, 1, 254]]])


def decode_mask(data, name, **options):
    return 255 * decode_labels(data, name, **options)


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def palette_image(**info):
    image = Image.new("P", (2, 1))
    image.info |= info
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return image


class Records:
    """`count` encoded records; every pixel of image i is (i, i + 1, i + 2). Counts its reads."""

    def __init__(self, count, size=(4, 4)):
        self.count, self.size, self.reads = count, size, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads.append(int(index))
        mask = np.zeros(self.size, np.uint8)
        mask[: self.size[0] // 2] = 255
        image = Image.new("RGB", self.size[::-1], (index, index + 1, index + 2))
        return {
            "id": f"image {index}".encode(),
            "image": encode(image),
            "mask": encode(Image.fromarray(mask)),
        }


def numbers(batch):
    """Which records a batch holds."""
    return batch["image"][:, 0, 0, 0].tolist()


def iterate(count, batch_size, seed=3, **options):
    source = pipeline.ResizedSource(Records(count), 2)
    return pipeline.train_iterator(source, batch_size, seed, num_threads=1, **options)


def order(iterator, batches):
    return [number for _ in range(batches) for number in numbers(next(iterator))]


def test_a_share_of_the_examples_are_extra_ones():
    """Of 12 examples, 9 are own ones: 0, 1 and 2, each as often; and a place can be restored."""
    source = pipeline.ResizedSource(Records(10), 2)
    source.extra = 7
    make = lambda: pipeline.train_iterator(source, 4, 3, num_threads=1, extra_share=0.25)
    iterator = make()
    seen = order(iterator, 3)
    assert [seen.count(number) for number in range(3)] == [3, 3, 3]
    state, later = iterator.get_state(), order(iterator, 4)
    assert len({number for number in seen + later if number >= 3}) == 7  # Once each.
    again = make()
    again.set_state(state)
    assert order(again, 4) == later
    source.extra = 0
    with pytest.raises(UserError, match="data.extra_share=0.25: 0 of 10 training images are of"):
        make()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(RGB[..., 0]), RGB[..., :1].repeat(3, axis=-1)),
        (palette_image(), RGB[:1]),
        (palette_image(transparency=b"\0\xff"), RGB[:1]),
        (Image.fromarray(np.dstack([RGB, np.uint8([[0, 255], [1, 128]])])), RGB),
        (Image.fromarray(np.dstack([RGB[..., 0], RGB[..., 1]]), "LA"), RGB[..., :1].repeat(3, -1)),
        (Image.new("1", (2, 1), 1), np.full((1, 2, 3), 255)),
        (Image.new("RGB", (1, 1), (1, 2, 3)), [[[1, 2, 3]]]),
    ],
    ids=[
        "rgb",
        "grey",
        "palette",
        "palette and transparency",
        "alpha",
        "grey and alpha",
        "1 bit",
        "1 x 1",
    ],
)
def test_decodes_any_kind_of_image_to_rgb(image, expected):
    decoded = decode_image(encode(image), "a")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


def test_decodes_cmyk():
    decoded = decode_image(encode(Image.new("CMYK", (16, 8), (0, 255, 255, 0)), "JPEG"), "a")
    assert decoded.shape == (8, 16, 3)
    np.testing.assert_allclose(np.int32(decoded), np.full((8, 16, 3), (255, 0, 0)), atol=3)


def test_decodes_a_bmp_of_16_bits_for_all_colours():
    pixels, masks = (
        struct.pack("<HH", 31 << 11, 63 << 5),
        struct.pack("<III", 31 << 11, 63 << 5, 31),
    )
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0) + masks
    data = b"BM" + struct.pack("<IHHI", 70, 0, 0, 66) + header + pixels
    np.testing.assert_array_equal(decode_image(data, "a"), [[[255, 0, 0], [0, 255, 0]]])


def test_decodes_48_megapixels():
    data = encode(Image.new("L", (8000, 6000), 7), compress_level=1)
    assert decode_image(data, "a").shape == (6000, 8000, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_turns_upright_what_exif_says_is_turned(decode, orientation):
    corners = np.zeros((2, 3), np.uint8)
    corners[0, 0] = 255  # Where it is seen, by its orientation:
    expected = np.zeros((3, 2) if orientation > 4 else (2, 3), np.uint8)
    bottom, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    expected[-1 if bottom else 0, -1 if right else 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(Image.fromarray(corners), exif=exif), "a")
    np.testing.assert_array_equal(decoded if decoded.ndim == 2 else decoded[..., 0], expected)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.uint8([[0, 255, 255]])), [[0, 255, 255]]),
        (Image.fromarray(np.uint8([[[255] * 3, [0] * 3]])), [[255, 0]]),
        (Image.fromarray(np.array([[True, False]])), [[255, 0]]),
        (Image.fromarray(np.uint8([[[0, 9], [255, 9]]]), "LA"), [[0, 255]]),
        (Image.new("L", (1, 1), 0), [[0]]),
    ],
    ids=["grey", "rgb", "1 bit", "grey and alpha", "1 x 1"],
)
def test_decodes_any_kind_of_mask_to_0_or_255(image, expected):
    decoded = decode_mask(encode(image), "a")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    ("values", "named"), [((0, 1), "1"), ((0, 127, 128, 255), "127, 128"), (range(9), "1, 2, 3")]
)
def test_a_mask_with_other_values_is_refused(values, named):
    data = encode(Image.fromarray(np.uint8([values])))
    message = rf"^mask of a: the mask has values other than 0 and 255 \({named}\): make it 0"
    with pytest.raises(UserError, match=message):
        decode_mask(data, "mask of a")


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (7,), (0,)])
def test_a_mask_of_zero_and_one_other_value_is_read(values):
    data = encode(Image.fromarray(np.uint8([values])))
    expected = [[255 * (value > 0) for value in values]]
    np.testing.assert_array_equal(decode_mask(data, "a", any_value=True), expected)
    data = encode(Image.fromarray(np.uint8([[1, 2, 9]])))
    with pytest.raises(UserError, match=r"^a: the mask has 3 values \(1, 2, 9\): make it 0 and"):
        decode_mask(data, "a", any_value=True)


@pytest.mark.parametrize("decode", [decode_image, decode_mask])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_truncated_files_are_named(decode, format, share):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), format)
    with pytest.raises(UserError, match=r"^ISIC_7: cannot be decoded as an image"):
        decode(data[: int(share * len(data))], "ISIC_7")


@pytest.mark.parametrize("decode", [decode_image, decode_mask])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty$"),
        (b"This is no image.", r"cannot be decoded as an image \(of no known format\): replace"),
    ],
    ids=["0 bytes", "text"],
)
def test_empty_files_and_text_are_named(decode, data, reason):
    with pytest.raises(UserError, match=f"^ISIC_7: {reason}"):
        decode(data, "ISIC_7")


def test_a_mask_that_cannot_be_converted_is_named():
    data = encode(Image.new("LAB", (2, 1)), "TIFF")
    with pytest.raises(UserError, match=r"^mask of a: the mask is LAB: save it in grey"):
        decode_mask(data, "mask of a")


TRUE = np.zeros((20, 24), np.uint8)
TRUE[3:13, 5:12] = 1  # 70 of 480 pixels


def in_colours(background, foreground):
    return Image.fromarray(np.uint8([background, foreground])[TRUE])


def in_a_palette(background, foreground):
    image = Image.fromarray(TRUE, "P")
    image.putpalette([*background, *foreground])
    return image


def transparent(image, colour):
    """As a PNG that makes one colour or index transparent, without an alpha channel."""
    return Image.open(io.BytesIO(encode(image, transparency=colour)))


@pytest.mark.parametrize(
    "mask",
    [
        *(in_colours((0, 0, 0), colour) for colour in ((1, 0, 0), (2, 0, 0), (255, 0, 0))),
        *(in_colours((0, 0, 0), (0, 0, blue)) for blue in (1, 2, 3, 4)),
        in_colours((0, 0, 0, 255), (0, 3, 0, 255)),
        in_colours((0, 0, 0), (1, 1, 1)),
        in_a_palette((0, 0, 0), (0, 0, 2)),
        in_a_palette((255, 255, 255), (0, 0, 0)),
        transparent(in_a_palette((0, 0, 0), (255, 0, 0)), 0),  # The background is.
        transparent(Image.fromarray(255 * TRUE), 0),
        Image.fromarray(7 * TRUE),
        Image.fromarray(TRUE > 0),
    ],
)
def test_a_mask_of_two_values_is_found_whatever_its_colours(mask):
    labels = decode_labels(encode(mask), "a", any_value=True)
    np.testing.assert_array_equal(labels, TRUE)


@pytest.mark.parametrize(
    "mask, message",
    [
        (in_colours((0, 0, 0, 0), (0, 0, 0, 255)), "parts of the mask are transparent: flatten it"),
        (in_colours((255, 255, 255, 0), (255, 0, 0, 255)), "parts of the mask are transparent"),
        (in_colours((1, 0, 0), (2, 0, 0)), "several colours"),
        (transparent(in_colours((255, 255, 255), (0, 0, 0)), (255, 255, 255)), "transparent"),
        (transparent(Image.fromarray(255 * (1 - TRUE)), 255), "transparent"),
        (transparent(in_a_palette((0, 0, 0), (255, 255, 255)), 1), "transparent"),
        (in_colours((255, 255, 255), (255, 0, 0)), "several colours"),
    ],
)
def test_a_mask_that_could_mean_two_things_is_refused(mask, message):
    with pytest.raises(UserError, match=f"^a: .*{message}"):
        decode_labels(encode(mask), "a", any_value=True)


@pytest.mark.parametrize("colour", [(100, 100, 100), (255, 0, 0), (200, 200, 200)])
def test_blurred_masks_are_cut_at_half_of_their_own_largest_value(colour):
    large = Image.fromarray(np.uint8([(0, 0, 0), colour])[TRUE]).resize((240, 200), 0)
    mask = decode_blurred_mask(encode(large, "JPEG", quality=75), "a")
    expected = 255 * np.kron(TRUE, np.ones((10, 10), np.uint8))
    assert (mask != expected).mean() < 0.005 and set(np.unique(mask)) == {0, 255}
    assert not decode_blurred_mask(encode(Image.new("L", (8, 8)), "JPEG"), "a").any()


def test_palettes_and_full_masks_have_no_blurred_edges():
    mask = decode_blurred_mask(encode(in_a_palette((255, 255, 255), (0, 0, 0))), "a")
    np.testing.assert_array_equal(mask, 255 * TRUE)
    assert (decode_blurred_mask(encode(Image.new("L", (8, 8), 250), "JPEG"), "a") == 255).all()


@pytest.mark.parametrize(
    "image, reason",
    [
        (Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (8, 1))), "32768 of 65536 pixels"),
        (Image.new("L", (8, 8), 20), "its values go to 20"),
        (in_colours((255, 255, 255), (255, 0, 0)), "it has several colours"),
        (in_colours((0, 0, 255), (255, 0, 0)), "it has several colours"),
        (in_colours((200, 200, 200), (255, 255, 255)), "its values go from 1.. to 255"),
    ],
)
def test_what_is_no_blurred_mask_is_refused(image, reason):
    data = encode(image.resize((256, 256), 0), "JPEG")
    with pytest.raises(UserError, match=f"^a: the mask is not black and one other .*{reason}"):
        decode_blurred_mask(data, "a")


def test_a_blurred_mask_with_transparent_parts_is_refused():
    for mask in (
        in_colours((0, 0, 0, 0), (0, 0, 0, 255)),
        in_colours((9, 9, 9, 0), (255, 0, 0, 255)),
    ):
        with pytest.raises(UserError, match="^a: parts of the mask are transparent"):
            decode_blurred_mask(encode(mask), "a")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_is_broken_or_tells_no_side_is_passed_over():
    image = Image.fromarray(RGB)
    for exif in b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff":
        for form in "JPEG", "WEBP", "PNG":
            data = encode(image, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
            assert decode_image(data, "a").shape == RGB.shape and not doubt(data, data)
    for turn in (0, 1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        turned = encode(image, exif=exif)
        np.testing.assert_array_equal(decode_image(turned, "a"), RGB)
        assert not doubt(turned, encode(image))
    xmp = PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    turned = encode(image, pnginfo=xmp)
    np.testing.assert_array_equal(decode_image(turned, "a"), RGB[::-1, ::-1])
    assert "EXIF turns" in doubt(turned, encode(image))
    text = PngInfo()
    text.add_text("a", "x" * 5_000_000, zip=True)
    assert not doubt(encode(image, pnginfo=text), encode(image, pnginfo=text))


def chunk(kind, data, error=0):
    """Of a PNG; with an error, its checksum is wrong."""
    checksum = zlib.crc32(kind + data) ^ error
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def packed(megabytes):
    return b"k\0\0" + zlib.compress(bytes(1_000_000) * megabytes, 1)


@pytest.mark.parametrize(
    "notes",
    [
        [chunk(b"zTXt", packed(5))],
        [chunk(b"zTXt", packed(8))] * 10,
        [chunk(b"iCCP", packed(5))],
        [chunk(b"iCCP", b"k\0\0no zlib")],
        [chunk(b"iCCP", b"k\0\7")],
        [chunk(b"iCCP", b"k")],
        [chunk(b"pHYs", bytes(9), error=1)],
    ],
    ids="text texts profile no_profile method short checksum".split(),  # noqa: SIM905
)
@pytest.mark.parametrize("place", [33, -12], ids=["before the pixels", "after them"])
def test_what_a_png_holds_beside_its_pixels_does_not_matter(notes, place):
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    data = encode(Image.fromarray(RGB), exif=exif)
    data = data[:place] + b"".join(notes) + data[place:] + b"trailing rubbish"
    np.testing.assert_array_equal(decode_image(data, "a"), RGB[::-1, ::-1])
    mask = encode(Image.fromarray(TRUE))
    mask = mask[:place] + b"".join(notes) + mask[place:]
    np.testing.assert_array_equal(decode_labels(mask, "a", any_value=True), TRUE)


def test_texts_of_a_png_may_say_which_side_is_up():
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    profile = f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}".encode()
    notes = (
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="3"/>'),
    )
    data = encode(Image.fromarray(RGB))
    for note in notes:
        decoded = decode_image(data[:33] + note + data[33:], "a")
        np.testing.assert_array_equal(decoded, RGB[::-1, ::-1])


@pytest.mark.parametrize("end", [b"", b"\0" * 9, bytes(range(256))])
def test_what_follows_a_jpeg_does_not_matter(end):
    data = encode(Image.fromarray(np.kron(RGB, np.ones((9, 9, 1), np.uint8))), "JPEG")
    expected = decode_image(data, "a")
    np.testing.assert_array_equal(decode_image(data + end, "a"), expected)
    if end:  # Its last marker is lost.
        np.testing.assert_array_equal(decode_image(data[:-2] + bytes(99) + end, "a"), expected)


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading")])
def test_lack_of_memory_is_no_fault_of_the_file(monkeypatch, error):
    def load(self):
        raise error

    data = encode(Image.fromarray(RGB))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    for decode in (decode_image, decode_mask):
        with pytest.raises(MemoryError, match="^a: not enough memory .*data.num_threads in train"):
            decode(data, "a")


def png_of_16_bit_colours():
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + bytes(range(12)))
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(np.uint16([[0, 65535]]))),
        encode(Image.fromarray(np.float32([[0, 1]])), "TIFF"),
        png_of_16_bit_colours(),
    ],
    ids=["16-bit grey", "float", "16-bit colours"],
)
@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_more_than_8_bits_are_refused(decode, data):
    with pytest.raises(UserError, match=r"^ISIC_7: more than 8 bits a channel: convert it"):
        decode(data, "ISIC_7")


def test_a_decompression_bomb_is_refused_unread(monkeypatch):
    bomb = encode(Image.fromarray(RGB))
    monkeypatch.setattr("segdiff_jax.data.decode.MOST_PIXELS", 3)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was read"))
    for pillows in (None, 3, 1):  # Beyond its limit, Pillow warns; beyond twice, it raises itself.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
        with pytest.raises(UserError, match=r"^ISIC_7: 4 pixels may be a decompression bomb"):
            decode_image(bomb, "ISIC_7")


def test_resizing_an_image_antialiases():
    checkers = np.where(np.indices((64, 48)).sum(axis=0) % 2, 255, 0).astype(np.uint8)
    resized = pipeline.resize_image(checkers[..., None].repeat(3, axis=-1), 8)
    assert resized.shape == (8, 8, 3)
    assert resized.dtype == np.uint8
    np.testing.assert_allclose(np.int32(resized), 127.5, rtol=0, atol=2)


def test_resizing_an_image_keeps_places_and_channels():
    image = np.zeros((24, 48, 3), np.uint8)
    image[:12, :, 0] = 200
    image[:, :24, 1] = 100
    image[..., 2] = 7
    resized = pipeline.resize_image(image, 8)
    for row, column, colour in ((0, 0, (200, 100, 7)), (0, 7, (200, 0, 7)), (7, 0, (0, 100, 7))):
        np.testing.assert_array_equal(resized[row, column], colour)
    np.testing.assert_array_equal(pipeline.resize_image(RGB, 2), RGB)


def test_resizing_labels_gives_the_lesion_share_of_each_area():
    labels = np.uint8(
        [
            # 3 of 4, 1 of 4; 2 of 4 either way, which is not over half; all, none
            [1, 1, 0, 0],
            [0, 1, 0, 1],
            [1, 0, 1, 1],
            [0, 1, 0, 0],
        ]
    )
    resized = pipeline.resize_labels(labels, (2, 2))
    assert resized.dtype == np.uint8 and resized.shape == (2, 2, 1)
    np.testing.assert_array_equal(resized[..., 0], [[191, 63], [127, 127]])
    np.testing.assert_array_equal(pipeline.resize_labels(labels, (4, 4))[..., 0], 255 * labels)
    enlarged = 255 * labels.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(pipeline.resize_labels(labels, (8, 8))[..., 0], enlarged)


def test_resizing_labels_equals_the_mean_of_each_area():
    labels = np.uint8(np.random.default_rng(0).random((144, 144)) > 0.5)
    share = labels.reshape(9, 16, 9, 16).mean(axis=(1, 3))
    assert (share == 0.5).any()
    assert (np.abs(share - 0.5) == 1 / 256).any()
    resized = pipeline.resize_labels(labels, (9, 9))[..., 0]
    np.testing.assert_array_equal(resized, np.floor(255 * share))
    np.testing.assert_array_equal(resized > 127, share > 0.5)
    # As one of several classes, it has the same share; the others have theirs.
    three = Classes(("a", "b", "c"), (0, 1, 2))
    of_three = pipeline.resize_labels(2 * labels, (9, 9), three)
    np.testing.assert_array_equal(of_three[..., 2], resized)
    np.testing.assert_array_equal(of_three[..., 0], np.floor(255 * (1 - share)))
    assert of_three.shape == (9, 9, 3) and not of_three[..., 1].any()


def test_source_reads_each_record_once():
    records = Records(5, size=(6, 4))
    source = pipeline.ResizedSource(records, 2)
    first = [source[i] for i in range(5)]
    assert records.reads == [0, 1, 2, 3, 4]
    second = [source[i] for i in (4, 3, 2, 1, 0)][::-1]
    assert records.reads == [0, 1, 2, 3, 4]
    for i in range(5):
        for example in (first[i], second[i]):
            assert sorted(example) == ["image", "mask"]
            np.testing.assert_array_equal(example["image"], np.full((2, 2, 3), (i, i + 1, i + 2)))
            np.testing.assert_array_equal(example["mask"][..., 0], [[255, 255], [0, 0]])
            assert example["image"].dtype == example["mask"].dtype == np.uint8
            assert example["mask"].shape == (2, 2, 1)


def with_fingerprint(fingerprint="f", count=5):
    records = Records(count, size=(6, 4))
    records.fingerprint = fingerprint
    return records


def resized(folder, records, size=2, **options):
    return pipeline.ResizedSource(records, size, data_dir=folder, **options)


def test_the_second_start_reads_no_record(tmp_path):
    first, again = with_fingerprint(), with_fingerprint()
    source = resized(tmp_path, first)
    before = [source[i] for i in (4, 0, 1, 3)]
    assert not list(tmp_path.iterdir())  # Not before all are there.
    before.append(source[2])
    assert len(list((tmp_path / "resized").iterdir())) == 1
    source = resized(tmp_path, again)
    for i, expected in zip((4, 0, 1, 3, 2), before, strict=True):
        for name in ("image", "mask"):
            np.testing.assert_array_equal(source[i][name], expected[name])
    assert again.reads == []


@pytest.mark.parametrize(
    ("fingerprint", "options"),
    [
        ("g", {}),
        ("f", {"size": 3}),
        ("f", {"limit": 4}),
        ("f", {"colour_constancy": "shades_of_gray"}),
        (None, {}),
    ],
)
def test_other_records_or_images_have_another_file(tmp_path, fingerprint, options):
    source = resized(tmp_path, with_fingerprint())
    assert [source[i]["image"][0, 0, 0] for i in range(5)] == list(range(5))
    other = with_fingerprint(fingerprint)
    source = resized(tmp_path, other, **options)
    source[3]
    assert other.reads == [3]


def test_a_broken_file_is_written_again(tmp_path):
    source = resized(tmp_path, with_fingerprint())
    for i in range(5):
        source[i]
    (file,) = (tmp_path / "resized").iterdir()
    whole = file.read_bytes()
    for broken in (b"", whole[:40], whole[:-1], b"not an array"):
        file.write_bytes(broken)
        records = with_fingerprint()
        source = resized(tmp_path, records)
        assert [source[i]["image"][0, 0, 0] for i in range(5)] == list(range(5))
        assert records.reads == list(range(5))
        assert file.read_bytes() == whole
    assert list((tmp_path / "resized").iterdir()) == [file]


def test_a_full_disk_costs_the_file_alone(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    source = resized(tmp_path, with_fingerprint())
    assert [source[i]["image"][0, 0, 0] for i in range(5)] == list(range(5))
    assert [source[i]["image"][0, 0, 0] for i in range(5)] == list(range(5))
    output = capsys.readouterr().out
    assert output.count("not kept for the next run") == 1 and "No space left" in output
    assert list((tmp_path / "resized").iterdir()) == []


@pytest.mark.parametrize(("limit", "length"), [(None, 5), (2, 2), (5, 5), (9, 5), (0, 0)])
def test_source_is_limited_to_its_first_records(limit, length):
    records = Records(5)
    source = pipeline.ResizedSource(records, 2, limit=limit)
    assert len(source) == length
    assert records.reads == []
    assert [source[i]["image"][0, 0, 0] for i in range(length)] == list(range(length))


def test_source_corrects_the_colours_of_the_resized_image():
    arguments = (Records(5, size=(6, 4)), 2)
    plain = pipeline.ResizedSource(*arguments)
    source = pipeline.ResizedSource(*arguments, colour_constancy="shades_of_gray")
    for _ in range(2):
        example = source[4]
        # (4, 5, 6) of mean 5: the light is the colour itself, so all is grey.
        np.testing.assert_array_equal(example["image"], np.full((2, 2, 3), 5))
        np.testing.assert_array_equal(example["mask"], plain[4]["mask"])
    np.testing.assert_array_equal(plain[4]["image"][0, 0], (4, 5, 6))


def test_source_names_a_broken_record():
    source = pipeline.ResizedSource([{"id": b"ISIC_7", "image": b"no image", "mask": b""}], 2)
    with pytest.raises(UserError, match=r"^ISIC_7: "):
        source[0]


def test_record_ids_are_text():
    assert pipeline.record_id({"id": "é"}) == pipeline.record_id({"id": "é".encode()}) == "é"


def test_every_epoch_holds_each_example_once_in_another_order():
    # 7 examples in batches of 3: epochs do not end with a batch, and none is dropped.
    seen = np.reshape(order(iterate(7, 3), 14), (6, 7))
    np.testing.assert_array_equal(np.sort(seen), [range(7)] * 6)
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 6


def test_batches_hold_the_sources_examples():
    batch = next(iterate(5, 4))
    assert {name: (x.dtype, x.shape) for name, x in batch.items()} == {
        "image": (np.uint8, (4, 2, 2, 3)),
        "mask": (np.uint8, (4, 2, 2, 1)),
        "index": (np.int32, (4,)),
    }
    np.testing.assert_array_equal(batch["index"], [0, 1, 2, 3])
    np.testing.assert_array_equal(
        batch["mask"], np.uint8([[[255]] * 2, [[0]] * 2])[None].repeat(4, 0)
    )
    for i, number in enumerate(numbers(batch)):
        np.testing.assert_array_equal(
            batch["image"][i], np.full((2, 2, 3), (number, number + 1, number + 2))
        )


def test_the_order_follows_from_the_seed():
    first = order(iterate(8, 4), 4)
    assert order(iterate(8, 4), 4) == first
    assert order(iterate(8, 4, seed=4), 4) != first
    assert order(iterate(8, 2), 8) == first  # whatever the size of the batch


def test_a_restored_iterator_continues_where_the_saved_one_was():
    iterator = iterate(7, 3)
    order(iterator, 4)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = order(iterator, 6)
    other = iterate(7, 3)
    order(other, 1)
    other.set_state(state)
    assert order(other, 6) == expected
    iterator.set_state(state)
    assert order(iterator, 6) == expected


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_see_the_batch_of_one(processes):
    single = iterate(7, 6)
    parts = [iterate(7, 6, process_index=i, process_count=processes) for i in range(processes)]
    for _ in range(4):
        together = {}
        for part in parts:
            batch = next(part)
            assert len(batch["index"]) == 6 // processes
            together.update(zip(batch["index"].tolist(), numbers(batch), strict=True))
        batch = next(single)
        assert together == dict(zip(batch["index"].tolist(), numbers(batch), strict=True))
        assert sorted(together) == list(range(6))


def test_rejects_an_empty_source_and_a_batch_that_does_not_divide():
    with pytest.raises(UserError, match="training split is empty"):
        iterate(0, 4)
    with pytest.raises(UserError, match=r"train\.batch_size=4 must be divisible by 3 processes"):
        iterate(5, 4, process_count=3)


@pytest.mark.parametrize(("count", "batches"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (11, 3)])
def test_padded_batches_hold_every_example_once(count, batches):
    examples = [{"id": i} for i in range(count)]
    groups = list(pipeline.padded_batches(iter(examples), 4))
    assert len(groups) == batches
    seen = []
    for group, valid in groups:
        assert len(group) == len(valid) == 4
        assert valid.dtype == bool
        seen += [group[i] for i in np.flatnonzero(valid)]
    assert seen == examples
    if count:
        group, valid = groups[-1]
        assert all(group[i] is examples[-1] for i in np.flatnonzero(~valid))
