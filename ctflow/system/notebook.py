"""How objects show themselves in notebooks: their one line, and a few pictures below it."""

from __future__ import annotations

import base64
import html
import io

from torch import Tensor

_SIDE = 192  # pixels of a thumbnail
_MOST = 3  # pictures in a row


def thumbnails(line: str, pictures: list[tuple[str, Tensor]], window: tuple[float, float], unit: str) -> str:
    """HTML of a line and small pictures in one grey window; it needs no file and no network.

    Args:
        line: what the object says of itself.
        pictures: title and image (Y, X) of each.
        window: values that are black and white.
        unit: their unit.
    """
    low, high = window
    shown = "".join(
        f'<figure style="margin:0"><img src="data:image/png;base64,{_png(image, low, high)}" '
        f'alt="{html.escape(title)}" style="width:{_SIDE}px;image-rendering:pixelated">'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
        for title, image in pictures
    )
    scale = f"black {low:.4g}, white {high:.4g} {unit}"
    return (
        f"<div><code>{html.escape(line)}</code>"
        f'<div style="display:flex;gap:8px;margin-top:4px">{shown}</div><small>{scale}</small></div>'
    )


def spaced(count: int) -> list[int]:
    """Up to three indices below `count`: the one in the middle, and those halfway to both ends."""
    return sorted({count * (2 * k + 1) // (2 * _MOST) for k in range(_MOST)})


def _png(image: Tensor, low: float, high: float) -> str:
    from PIL import Image

    grey = ((image.detach().double().cpu() - low) / ((high - low) or 1.0)).nan_to_num(0.0).clamp(0, 1)
    picture = Image.fromarray((255 * grey).round().byte().numpy())
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
