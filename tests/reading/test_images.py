"""What images come in, what does not, and that a disk's passing error changes no sample."""

import errno
import io
import os

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import EpsImagePlugin, Image

from uniperceiver_v2.data.loading.train import TrainingBatches
from uniperceiver_v2.data.order import SampleOrder
from uniperceiver_v2.errors import UnreadableImage, UserError
from uniperceiver_v2.reading import decode_image, disk, images, read_image, read_reduced, read_size
from uniperceiver_v2.reading.disk import WAITS
from uniperceiver_v2.visualization import scene_picture

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 9\n%%EndComments\nshowpage\n%%EOF\n"


def picture(height: int = 9, width: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.fixture
def ghostscript(monkeypatch):
    """The calls that Pillow would have made."""
    calls = []

    def started(*arguments, **_):
        calls.append(arguments)
        return picture().im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    return calls


@pytest.mark.parametrize("suffix", ["eps", "jpg", "png"])
def test_postscript_starts_no_program_whatever_its_suffix(tmp_path, ghostscript, suffix):
    path = tmp_path / f"picture.{suffix}"
    path.write_bytes(EPS)
    for record in (
        {"file_name": str(path)},
        {"file_name": "shard.tar/picture", "image_bytes": EPS},
    ):
        with pytest.raises(UnreadableImage, match=f"{record['file_name']}: cannot identify the image's format"):
            read_image(record, "RGB")
    with pytest.raises(UnreadableImage):
        scene_picture({"file_name": str(path)}, None)
    assert not ghostscript


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("wanted", ["RGB", "BGR"])
def test_files_and_bytes_give_detectron2s_pixels(tmp_path, image_format, wanted):
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    options = {"exif": exif} if image_format in ("JPEG", "PNG", "WEBP") else {}
    path = tmp_path / "picture.jpg"  # the content counts
    path.write_bytes(encoded(image_format, **options))
    expected = detection_utils.read_image(str(path), format=wanted)
    assert expected.shape == ((12, 9, 3) if options else (9, 12, 3))
    for record in ({"file_name": str(path)}, {"file_name": "x", "image_bytes": path.read_bytes()}):
        assert np.array_equal(read_image(record, wanted), expected)


def test_what_is_no_file_is_unreadable_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in (("pipe.jpg", "a pipe"), ("folder.jpg", "a folder"), ("none.jpg", "No such file")):
        with pytest.raises(UnreadableImage, match=f"{name}: .*{reason}"):
            read_image({"file_name": str(tmp_path / name)}, "RGB")


@pytest.mark.parametrize("orientation", [None, 1, 3, 6])
def test_the_size_is_that_of_the_pixels(tmp_path, orientation):
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    if orientation is not None:
        exif[274] = orientation
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_size(str(tmp_path / "a.jpg")) == read_image({"file_name": str(tmp_path / "a.jpg")}, "RGB").shape[:2]


def test_a_size_needs_the_header_alone(tmp_path):
    path = tmp_path / "a.png"
    Image.effect_noise((200, 100), 50).save(path)
    path.write_bytes(path.read_bytes()[:200])
    assert read_size(str(path)) == (100, 200)
    for content in (b"", b"no image"):
        path.write_bytes(content)
        with pytest.raises(UnreadableImage, match=r"a\.png: cannot identify"):
            read_size(str(path))
    with pytest.raises(UnreadableImage, match=r"b\.png"):
        read_size(str(tmp_path / "b.png"))


class BrokenDisk:
    """Fails so many reads with an error, or the one of a number."""

    def __init__(self, error: int | OSError, times: int, opened):
        self.error, self.times, self._open = error, times, opened

    def open(self, path, mode):
        if self.times:
            self.times -= 1
            if isinstance(self.error, OSError):
                raise self.error
            raise OSError(self.error, os.strerror(self.error), path)
        return self._open(path, mode)


@pytest.fixture
def broken_disk(monkeypatch):
    """broken_disk(errno or error, times): the disk from now on; waits are short."""
    monkeypatch.setattr(disk, "WAITS", (0.001, 0.001, 0.001))
    opened = disk.PathManager.open

    def replace(error: int | OSError, times: int) -> BrokenDisk:
        broken = BrokenDisk(error, times, opened)
        monkeypatch.setattr(disk, "PathManager", broken)
        return broken

    return replace


@pytest.fixture
def batches(tmp_path):
    """Batches of four of eight images; a sample is the name of its image."""
    records = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        path.write_bytes(encoded("PNG"))
        records.append({"file_name": str(path)})

    def mapper(record: dict) -> dict:
        read_image(record, "RGB")
        return {"name": record["file_name"]}

    return TrainingBatches(records, mapper, SampleOrder(8, "task", 0), batch_size=4, rank=0, world_size=1)


PASSING = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE]


@pytest.mark.parametrize("number", PASSING)
def test_an_error_that_passes_changes_no_sample(batches, broken_disk, number):
    expected = batches[0]
    broken = broken_disk(number, times=3)
    assert batches[0] == expected and not expected[1]
    assert broken.times == 0


@pytest.mark.parametrize("number", PASSING)
def test_an_error_that_stays_ends_the_run_and_replaces_nothing(batches, broken_disk, number):
    broken_disk(number, times=1000)
    samples, unreadable = batches[0]
    assert not unreadable
    assert all(isinstance(sample, UserError) for sample in samples)
    message = str(samples[0])
    assert ".png" in message and errno.errorcode[number] in message and "--resume" in message


@pytest.mark.parametrize("error", [TimeoutError("read timed out"), ConnectionResetError("peer is gone")])
def test_errors_of_a_library_for_remote_files_pass_as_well(batches, broken_disk, error):
    """They have no number."""
    expected = batches[0]
    broken = broken_disk(error, times=3)
    assert batches[0] == expected and broken.times == 0
    broken_disk(error, times=1000)
    samples, unreadable = batches[0]
    assert not unreadable and all(isinstance(sample, UserError) for sample in samples)
    assert f"{type(error).__name__}: {error}, 4 times" in str(samples[0])


def test_a_file_server_may_be_away_for_a_minute(batches, broken_disk, monkeypatch, caplog):
    expected, waits = batches[0], []
    broken = broken_disk(errno.ETIMEDOUT, times=len(WAITS))
    monkeypatch.setattr(disk, "WAITS", WAITS)
    monkeypatch.setattr("time.sleep", waits.append)
    assert batches[0] == expected and broken.times == 0
    assert 60 < sum(waits) < 70 and max(waits) == 10
    assert "cannot be read" in caplog.text and "trying again in 10 s" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_an_error_of_the_file_itself_replaces_its_image_at_once(batches, broken_disk, monkeypatch, number):
    broken = broken_disk(number, times=1)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
    samples, unreadable = batches[0]
    assert len(samples) == 4 and len(unreadable) == 1 and ".png" in unreadable[0]
    assert broken.times == 0


@pytest.mark.parametrize(
    ("side", "scale"), [(600, 1), (301, 1), (300, 2), (151, 2), (150, 4), (100, 4), (75, 8), (1, 8)]
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_large_jpeg_is_decoded_as_small_as_still_serves(tmp_path, side, scale, orientation):
    """Its pixels are nearly the means of squares of the whole, and the size is the whole's."""
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((800, 600))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / "large.jpg")
    smooth.save(path, quality=95, exif=exif)
    whole = read_image({"file_name": path}, "RGB")
    found, size = read_reduced(path, side)
    assert size == whole.shape[:2] == read_size(path) == ((800, 600) if orientation == 6 else (600, 800))
    height, width = (side // scale for side in size)
    means = whole.reshape(height, scale, width, scale, 3).mean((1, 3))
    assert found.dtype == np.uint8 and found.shape == means.shape
    assert np.abs(found - means).max() < 4
    if scale == 1:
        assert np.array_equal(found, whole)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_other_formats_are_decoded_as_a_whole(tmp_path, image_format):
    path = tmp_path / "picture"
    path.write_bytes(encoded(image_format))
    found, size = read_reduced(str(path), 1)
    assert size == (9, 12) and np.array_equal(found, read_image({"file_name": str(path)}, "RGB"))


def test_a_jpeg_that_is_cut_short_is_not_read_reduced_either(tmp_path):
    path = tmp_path / "cut.jpg"
    picture(300, 400).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UnreadableImage, match=f"{path}: .*truncated"):
        read_reduced(str(path), 10)


def test_a_png_without_the_palette_that_its_pixels_name_is_refused():
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).convert("P").save(file, "PNG")
    png = file.getvalue()
    decode_image(png, "RGB")
    place = png.index(b"PLTE") - 4
    end = place + 12 + int.from_bytes(png[place : place + 4], "big")
    with pytest.raises(ValueError, match=r"^its pixels are places in a palette, which it does not have$"):
        decode_image(png[:place] + png[end:], "RGB")


def test_a_webp_may_have_half_as_many_pixels(monkeypatch):
    monkeypatch.setattr(images, "LARGEST_WEBP", 99)
    file = io.BytesIO()
    Image.new("RGB", (10, 10)).save(file, "WEBP")
    with pytest.raises(ValueError, match=r"^has 10 x 10 pixels, more than 99 together$"):
        decode_image(file.getvalue(), "RGB")


def test_a_size_that_cannot_be_read_is_told_with_the_formats(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"no picture")
    with pytest.raises(UnreadableImage, match=r"picture\.png: cannot identify the image's format as one of JPEG, PNG"):
        read_size(str(path))
