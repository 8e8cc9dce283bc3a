from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.workbench.build import photos
from turbovlm.errors import InputError
from turbovlm_workbench.data.images import ImageFolder, check_labels, find_images, read_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", 3)  # photo0.jpg, photo2.jpg, sub/photo1.jpg


def labelled(folder: Path, text: str) -> ImageFolder:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return ImageFolder.open(folder, folder / "labels.csv")


def test_images_are_found_in_subfolders_in_order(folder: Path) -> None:
    (folder / "notes.txt").write_text("no image")
    Image.new("L", (9, 7)).save(folder / "grey.PNG")
    images = ImageFolder.open(folder)
    names = [images.name(index) for index in range(len(images))]
    assert names == ["grey.PNG", "photo0.jpg", "photo2.jpg", "sub/photo1.jpg"]
    assert images.labels is None
    assert images.image(0).mode == "RGB"
    assert images.image(0).size == (9, 7)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / f"red.{suffix}")
    red, green, _ = ImageFolder.open(tmp_path).image(0).getpixel((4, 4))  # type: ignore[misc]
    assert red > 150 > 60 > green


@pytest.mark.parametrize(
    ("header", "separator"),
    [("file,label", ","), ("Image,Target", ","), ("filename,class", ","), (" name , label ", ",")],
)
def test_labels_follow_the_images(folder: Path, header: str, separator: str) -> None:
    rows = ["sub/photo1.jpg,5", "photo2.jpg,7", "photo0.jpg,0"]
    assert labelled(folder, "\n".join([header, *rows])).labels == (0, 7, 5)


def test_labels_relative_to_the_table_and_further_columns(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = [f"x,photos/{name},{i}" for i, name in enumerate(["photo2.jpg", "sub/photo1.jpg"])]
    table.write_text("\n".join(["author,file,label", *rows, "y,photo0.jpg,9"]), encoding="utf-8")
    assert ImageFolder.open(folder, table).labels == (9, 0, 1)


def test_labels_are_looked_for_here_then_in_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "photo0.jpg,{0}\nphoto2.jpg,{0}\nsub/photo1.jpg,{0}\n"
    (folder / "labels.csv").write_text("file,label\n" + rows.format(1))
    assert ImageFolder.open(folder, "labels.csv").labels == (1, 1, 1)
    Path("labels.csv").write_text("file,label\n" + rows.format(2))
    assert ImageFolder.open(folder, "labels.csv").labels == (2, 2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nphoto0.jpg,1", r"columns path, label, but none of image, file, filename"),
        ("file,text\nphoto0.jpg,1", r"columns file, text, but none of label, class, target"),
        ("", r"columns \(none\)"),
        ("file,label\n", r"no row below its header"),
        ("file,label\nphoto0.jpg,1\nphoto2.jpg,cat", r"line 3: label 'cat' is not a class"),
        ("file,label\nphoto0.jpg,-1", r"line 2: label '-1'"),
        ("file,label\nphoto0.jpg,1.5", r"line 2: label '1.5'"),
        ("file,label\nphoto0.jpg", r"line 2: label None"),
        ("file,label\nphoto0.jpg,1\nphoto0.jpg,2", r"line 3: photo0.jpg has a label already"),
        ("file,label\ngone.jpg,1", r"line 2: no image gone.jpg"),
        ("file,label\n,1", r"line 2: the file name is empty"),
        ("file,label\nphoto0.jpg,1", r"2 of 3 images have no label, the first is photo2.jpg"),
    ],
)
def test_wrong_labels_name_the_place(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labelled(folder, text)


def test_labels_that_are_no_text(folder: Path) -> None:
    (folder / "labels.csv").write_bytes(b"file,label\n\xff\xfe\x00,1")
    with pytest.raises(InputError, match="cannot read the labels"):
        ImageFolder.open(folder, "labels.csv")


def test_a_missing_table(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no label table none\.csv, neither here nor in"):
        ImageFolder.open(folder, "none.csv")


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no image: expected files ending in \.png"):
        ImageFolder.open(tmp_path / "empty")
    with pytest.raises(InputError, match="gone does not exist"):
        ImageFolder.open(tmp_path / "gone")
    with pytest.raises(InputError, match=r"photo0\.jpg is a file"):
        ImageFolder.open(folder / "photo0.jpg")


def test_a_file_that_is_no_image_stops_at_once(folder: Path) -> None:
    (folder / "fake.jpg").write_text("this is no photograph")
    with pytest.raises(InputError, match=r"fake\.jpg \(not an image file: .*\): repair it"):
        ImageFolder.open(folder)


def test_a_truncated_image_is_named_when_decoded(folder: Path) -> None:
    path = folder / "photo2.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    images = ImageFolder.open(folder)
    with pytest.raises(InputError, match=r"photo2\.jpg \(.*truncated.*\): repair it"):
        images.image(1)


def test_labels_beyond_the_classes() -> None:
    check_labels([0, 9], 10)
    with pytest.raises(InputError, match=r"labels go up to 10, but the model has 10 classes"):
        check_labels([0, 10], 10)


def test_sixteen_bits_of_grey_are_scaled(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)
    Image.fromarray(np.tile(ramp, (4, 1))).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        assert image.mode.startswith("I")
    read = np.asarray(ImageFolder.open(tmp_path).image(0))
    assert read.shape == (4, 256, 3)
    assert np.array_equal(read[0, :, 1], np.arange(256))


def test_the_content_decides_what_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "drawing.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(InputError, match=r"drawing\.png \(not an image file: its content is"):
        ImageFolder.open(tmp_path)
    (tmp_path / "drawing.png").unlink()
    Image.new("RGB", (8, 8)).save(tmp_path / "really.png", "JPEG")
    assert ImageFolder.open(tmp_path).image(0).size == (8, 8)


def test_a_picture_above_the_limit_of_pixels_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (300, 300)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"huge\.png \(.*exceeds limit.*\): repair it"):
        read_image(tmp_path / "huge.png")


def test_links_to_nothing_and_pipes_are_named(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert find_images(tmp_path) == (tmp_path / "gone.png",)
    with pytest.raises(InputError, match=r"gone\.png .*No such file"):
        read_image(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png \(not a regular file\)"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_subfolder_that_cannot_be_read_is_an_error() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        photos(Path(name, "photos"), 3)
        Path(name, "photos", "sub").chmod(0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=r"cannot read the folder .*sub \(Permission"):
                find_images(Path(name, "photos"))
        finally:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label,label\nphoto0.jpg,1,2", "several columns for one thing, label, label"),
        ("file,name,label\nphoto0.jpg,cat,2", "several columns for one thing, file, name"),
        ("file,label\nphoto0,jpg,1", "line 2: more values than columns"),
    ],
)
def test_tables_that_mean_two_things(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labelled(folder, text)
