"""What `--plan` says a run holds, beside what it held: the rows of docs/weights.md, on random models.

    python benches/memory.py target/release/amscript WORK

WORK gets three random FLUX.2 models of `scripts/pretrain/random.rhai`; each row is a plan and a run of `memory.rhai`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = {  # width, double blocks, single blocks, pixels a side, tokens
    "88M": dict(width=768, double=2, single=6, size=256, tokens=32),
    "350M": dict(width=1536, double=2, single=6, size=256, tokens=32),
    "293M": dict(width=1024, double=4, single=12, size=128, tokens=64),
}
ROWS = [
    ("88M", {}), ("88M", dict(active=4)), ("88M", dict(batch=3)), ("88M", dict(rank=0)), ("88M", dict(by_hand="true")),
    ("350M", {}), ("350M", dict(checkpoint_blocks="true")),
    ("293M", {}), ("293M", dict(active=4)), ("293M", dict(dtype="bf16()", checkpoint_blocks="true")),
]  # fmt: skip


def run(binary, *arguments):
    return subprocess.run([binary, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def flags(settings):
    return sum([["--set", f"{k}={v}"] for k, v in settings.items()], [])


binary, work = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
for name, settings in ROWS:
    model, out = work / name, work / "runs" / str(len(list(work.glob("runs/*"))))
    if not model.exists():
        run(binary, HERE.parent / "scripts/pretrain/random.rhai", "--out", model, *flags(SIZES[name]))
    call = [HERE / "memory.rhai", "--set", f"model={model}", *flags(settings)]
    planned = re.search(r"most at once.* ([\d.]+) ([MG])B", run(binary, *call, "--plan"))
    planned = float(planned[1]) * dict(M=1e6, G=1e9)[planned[2]]
    run(binary, *call, "--out", out)
    measured = json.loads((out / "result.json").read_text())["peak_memory"]
    said = ", ".join(f"{k} {v}" for k, v in settings.items())
    print(f"| {name}{', ' * bool(said)}{said} | {planned / 1e9:.2f} GB | {measured / 1e9:.2f} GB | {planned / measured:.2f} |", flush=True)
