"""Pictures are written under the requested name, in the format of its ending."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from map_core import UserError
from map_core.runs.pictures import require_picture, save_picture


@pytest.mark.parametrize(
    ("name", "file_format"),
    [("a", "PNG"), ("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.webp", "WEBP"), ("a.tif", "TIFF")],
)
def test_the_name_says_the_format_and_stays(tmp_path, name, file_format):
    require_picture(tmp_path / name)
    save_picture(Figure(), tmp_path / name, dpi=20)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert Image.open(tmp_path / name).format == file_format


def test_an_unknown_format_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(UserError, match=r"a\.xyz: \.xyz is not a picture format; use one of \.png, \.jpg, "):
        require_picture(tmp_path / "a.xyz")
