"""What tests of the report's viewer do in Chromium, and read from it."""

import base64
import io
import re

from PIL import Image

SHAPE = (9, 24, 20)
"""Of the volumes that are shown."""


def opened(browser, path, script=""):
    """A loaded page; a script runs before its own."""
    page = browser.new_page(viewport={"width": 1500, "height": 1400}, accept_downloads=True)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.add_init_script(script)
    page.goto(path.as_uri())
    page.locator("#readC:has-text('HU')").wait_for()
    return page


def centre(page, row, column, letter="A", shape=SHAPE[1:]):
    """Where a pixel lies on the screen, without zoom."""
    frame = page.locator(f"#frame{letter}")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    rows, columns = shape
    x, y = box["width"] * (column + 0.5) / columns, box["height"] * (row + 0.5) / rows
    return box["x"] + x, box["y"] + y


def readings(page):
    """Row, column, and the numbers of A, B and C."""
    place, a = re.fullmatch(r"(row \d+, column \d+): (.+)", page.inner_text("#readA")).groups()
    row, column = map(int, re.findall(r"\d+", place))
    return (
        row,
        column,
        *(float(text.split()[0]) for text in (a, page.inner_text("#readB"), page.inner_text("#readC"))),
    )


def shown(page, place):
    """Wait until a place of the series is painted."""
    page.locator("#where").filter(has_text=f" {place} of the series").wait_for()


def painted(page):
    """Wait until what was asked for last is painted."""
    page.locator("#frameA[aria-busy=false]").wait_for()


def colour(page, row, column, letter="A", shape=SHAPE[1:]):
    """Colour of the canvas in the middle of a pixel, without zoom."""
    url = page.evaluate(f"document.getElementById('canvas{letter}').toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as canvas:
        wide, high = canvas.size
        x, y = (column + 0.5) / shape[1] * wide, (row + 0.5) / shape[0] * high
        return canvas.convert("RGB").getpixel((int(x), int(y)))


def drag(page, start, end, button="left"):
    page.mouse.move(*start)
    page.mouse.down(button=button)
    page.mouse.move(*end, steps=3)
    page.mouse.up(button=button)
