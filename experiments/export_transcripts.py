"""Export transcripts to a format that other tools open.

    python -m experiments.export_transcripts results/demo --to perfetto --output demo_trace.json

Reads a `.jsonl` of transcripts, or all of a folder. `perfetto`: a trace for ui.perfetto.dev, by causal clock.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from apr_jax import files, settings
from apr_jax.evaluate import perfetto


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.export_transcripts", description=__doc__)
    parser.add_argument("transcripts", help="a .jsonl of transcripts, or a folder of them")
    parser.add_argument("--to", choices=("perfetto",), required=True)
    parser.add_argument("--output", required=True, help="the file to write; it must not exist")
    given = parser.parse_args(argv)
    try:
        output = files.local(given.output, "output")
        if output.exists():
            raise ValueError(f"output: {output} exists; give another name, nothing is replaced")
        trace = perfetto.trace(perfetto.read(perfetto.sources(given.transcripts)))
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("x", encoding="utf-8") as file:
            json.dump(trace, file)
    except (ValueError, FileExistsError) as error:
        settings.fail(str(error))
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
