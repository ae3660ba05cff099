"""A program for tests of sweeps: a chain of hashes, a link a step, which goes on from what it has saved.

A link that is made twice or left out changes all that follow, as a step of training would.
"""

import argparse
import hashlib
import json
import os
import signal
import time
from pathlib import Path


def save(path: Path, value) -> None:
    path.with_suffix(".new").write_text(json.dumps(value))
    path.with_suffix(".new").replace(path)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--config", default="")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.02)
    parser.add_argument("--dies", choices=("never", "once", "always", "refuses"), default="never")
    given = parser.parse_args()
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    file, first = given.workdir / "state.json", not (given.workdir / "died").exists()
    if given.dies == "refuses":
        print("error: dies is refuses; allowed is never")
        return 2
    state = json.loads(file.read_text()) if file.exists() else {"step": 0, "link": f"{given.seed} {given.width}"}
    while state["step"] < given.steps:
        if given.dies == "always" or given.dies == "once" and first and state["step"] == 2:
            (given.workdir / "died").touch()
            raise RuntimeError("a wish to die")
        if asked:
            return 130
        time.sleep(given.pause)
        link = hashlib.sha256(state["link"].encode()).hexdigest()
        state = {"step": state["step"] + 1, "link": link}
        save(file, state)
        print(f"step {state['step']}", flush=True)
    value = int(state["link"][:6], 16) % 100
    save(given.workdir / "result.json", {"accuracy": given.width + value / 1000, "cores": len(os.sched_getaffinity(0))})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
