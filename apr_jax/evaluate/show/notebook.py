"""The timeline page inside a notebook."""

import dataclasses
import html
from collections.abc import Callable, Sequence

from apr_jax.evaluate.show import timeline


@dataclasses.dataclass(frozen=True, repr=False)
class Timeline:
    """The page of `apr_jax.evaluate.show.timeline` in a frame; a cell shows it if its last line is a `Timeline`. Writes no file.

    Attributes:
        items, text: see `timeline.page`.
        height: height of the frame, in pixels.
    """

    items: Sequence[timeline.Shown]
    text: Callable[[str, int], str]
    height: int = 640

    def _repr_html_(self) -> str:
        page = html.escape(timeline.page(self.items, self.text))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: {self.height}px; border: 0"></iframe>'
