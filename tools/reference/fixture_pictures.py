"""Small pictures in every format that is read, beside what Pillow makes of them."""

import io
import os

import numpy as np
from PIL import Image, ImageOps

import recording


def _smooth(width, height):
    """A picture that lossy formats keep well."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 100 * np.sin(x / 7.0 + y / 11.0), 255 * x / width, 255 * y / height]
    return Image.fromarray(np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8))


def _with_alpha(image):
    width, height = image.size
    alpha = np.tile(np.linspace(0, 255, width), (height, 1)).astype(np.uint8)
    return Image.merge("RGBA", [*image.split(), Image.fromarray(alpha)])


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _encoded(image, **arguments):
    data = io.BytesIO()
    image.save(data, **arguments)
    return data.getvalue()


def _pictures():
    plain = _smooth(37, 23)
    yield "plain.jpg", _encoded(plain, format="JPEG", quality=90, subsampling=0)
    yield "half.jpg", _encoded(plain, format="JPEG", quality=85, subsampling=2)
    yield "progressive.jpg", _encoded(plain, format="JPEG", quality=90, progressive=True)
    yield "grey.jpg", _encoded(plain.convert("L"), format="JPEG", quality=90)
    for orientation in range(2, 9):
        yield "turned%d.jpg" % orientation, _encoded(
            plain, format="JPEG", quality=90, exif=_exif(orientation)
        )
    yield "lossy.webp", _encoded(plain, format="WEBP", quality=90)
    yield "lossless.webp", _encoded(plain, format="WEBP", lossless=True)
    yield "alpha.webp", _encoded(_with_alpha(plain), format="WEBP", lossless=True, exact=True)
    yield "turned8.png", _encoded(plain, format="PNG", exif=_exif(8), optimize=True)
    yield "turned6.webp", _encoded(plain, format="WEBP", quality=90, exif=_exif(6))


def _over_white(image):
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def write(directory):
    os.makedirs(directory, exist_ok=True)

    def put(name, data):
        with open(os.path.join(directory, name), "wb") as file:
            file.write(data)

    for name, data in _pictures():
        put(name, data)
        decoded = _over_white(Image.open(io.BytesIO(data)))
        put(name + ".png", _encoded(decoded, format="PNG", optimize=True))

    # What cannot be used.
    plain = _smooth(37, 23)
    frames = [plain, plain.transpose(Image.Transpose.ROTATE_180)]
    put("animated.webp", _encoded(frames[0], format="WEBP", save_all=True,
                                  append_images=frames[1:], duration=100))
    put("animated.png", _encoded(frames[0], format="PNG", save_all=True,
                                 append_images=frames[1:], duration=100))
    put("other.gif", _encoded(plain, format="GIF"))

    # Image.resize, whose result is the same to the byte.
    busy = Image.fromarray(recording.synthetic_image(61, 45))
    put("busy.png", _encoded(busy, format="PNG", optimize=True))
    for width, height in ((40, 29), (61, 20), (7, 45), (1, 1), (100, 50), (58, 30)):
        small = busy.resize((width, height), Image.Resampling.LANCZOS)
        put("busy.%dx%d.png" % (width, height), _encoded(small, format="PNG", optimize=True))
    for width, height in ((56, 42), (58, 28), (84, 56)):
        small = busy.resize((width, height), Image.Resampling.BICUBIC)
        put("busy.cubic.%dx%d.png" % (width, height), _encoded(small, format="PNG", optimize=True))
