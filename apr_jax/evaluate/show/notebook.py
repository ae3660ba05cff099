"""What notebooks show: the timeline page, and the curves of a training run while it runs."""

import concurrent.futures
import dataclasses
import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from apr_jax.evaluate.show import plots, timeline

Config = TypeVar("Config")
Result = TypeVar("Result")


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


def watch(
    run: Callable[[Config], Result], config: Config, names: Sequence[str], shown: Any, seconds: float = 2.0
) -> Result:
    """Runs a training run and draws its numbers as they grow; an error of the run is raised here.

    Args:
        run: `apr_jax.train.sft.run` or `apr_jax.rl.run.run`.
        config: its configuration, with a `workdir`.
        names: of the numbers of `metrics.jsonl`, see `plots.curves`.
        shown: the handle of what the cell displays, `display(display_id=True)`.
        seconds: between two pictures.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(run, config)
        while concurrent.futures.wait([job], seconds).not_done:
            shown.update(Curves(Path(config.workdir), names))
        shown.update(Curves(Path(config.workdir), names))
        return job.result()


@dataclasses.dataclass(frozen=True)
class Curves:
    """The numbers that a training run has written by now; a cell shows them as a picture.

    Attributes:
        workdir: of the run.
        names: see `plots.curves`.
    """

    workdir: Path
    names: Sequence[str]

    def _repr_png_(self) -> bytes:
        path, data = self.workdir / "metrics.jsonl", io.BytesIO()
        complete = path.read_text().split("\n")[:-1] if path.exists() else []
        plots.curves([json.loads(line) for line in complete], self.names).savefig(data, dpi=90, facecolor="white")
        return data.getvalue()
