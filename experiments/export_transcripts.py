"""Export transcripts to a format that other tools open.

    python -m experiments.export_transcripts results/demo --to perfetto --output demo_trace.json
    python -m experiments.export_transcripts results/demo --to messages --tokenizer TOKENIZER --output demo.jsonl
    python -m experiments.export_transcripts results/demo --to parquet --output demo.parquet

Reads a `.jsonl` of transcripts, or all of a folder. `perfetto`: a trace for ui.perfetto.dev, by causal clock. `messages`: JSON
lines, each thread a conversation of chat messages. `parquet`: a table, a transcript a row, for `datasets` and the like.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from apr_jax import files, settings
from apr_jax.evaluate import exports, perfetto
from apr_jax.pretrained.tokenizer import load


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.export_transcripts", description=__doc__)
    parser.add_argument("transcripts", help="a .jsonl of transcripts, or a folder of them")
    parser.add_argument("--to", choices=("perfetto", "messages", "parquet"), required=True)
    parser.add_argument("--output", required=True, help="the file to write; it must not exist")
    parser.add_argument("--tokenizer", help="of the model, for messages: a file or folder")
    given = parser.parse_args(argv)
    try:
        output, told = files.local(given.output, "output"), ""
        if output.exists():
            raise ValueError(f"output: {output} exists; give another name, nothing is replaced")
        if (given.to == "messages") != bool(given.tokenizer):
            raise ValueError(
                f"tokenizer is {given.tokenizer}; messages need it, to tell what was fed, and others do not"
            )
        paths = perfetto.sources(given.transcripts)
        output.parent.mkdir(parents=True, exist_ok=True)
        if given.to == "perfetto":
            trace = perfetto.trace(perfetto.read(paths))
            with output.open("x", encoding="utf-8") as file:
                json.dump(trace, file)
        elif given.to == "messages":
            told = f": {exports.write_messages(paths, output, load(given.tokenizer).decode)} conversations"
        else:
            told = f": {exports.write_parquet(paths, output)} rows"
    except (ValueError, FileExistsError) as error:
        settings.fail(str(error))
    print(f"wrote {output}{told}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
