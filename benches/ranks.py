"""One rank of one thread against two: seconds of an update, in turn, and the efficiency t1 / (2 t2).

    python3 benches/ranks.py target/release/amscript 3     # binary with --features mpi, rounds

Beside it two processes that know nothing of one another, each with the work of one rank of two: what the machine itself gives. `--profile` of a
last run of two ranks says what is communication: the phases `waiting` (for other ranks) and `reduction`.
"""

import json, os, re, statistics, subprocess, sys, tempfile

binary, rounds = os.path.abspath(sys.argv[1]), int(sys.argv[2])
script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ranks.rhai")
environment = os.environ | {"RAYON_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
folder = tempfile.mkdtemp()


def start(ranks, batch, out, *arguments):
    launcher = ["mpirun", "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
    command = launcher + [binary, script, "--out", out, "--set", f"batch={batch}", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)


def median(process):
    said, errors = process.communicate()
    assert process.returncode == 0, said + errors
    return json.loads(re.search(r"\{.*median.*\}", said)[0])["median"], errors


found = {"one": [], "two": [], "apart": []}
for i in range(rounds):
    found["one"].append(median(start(1, 16, f"one-{i}"))[0])
    found["two"].append(median(start(2, 16, f"two-{i}"))[0])
    apart = [start(1, 8, f"apart-{i}-{k}") for k in range(2)]
    found["apart"].append(max(median(process)[0] for process in apart))
one, two, apart = (statistics.median(found[name]) for name in found)
print(json.dumps(found))
print(f"one rank {one:.3f} s, two {two:.3f} s, efficiency {one / two / 2:.3f}; two apart {apart:.3f} s, {one / apart / 2:.3f}")
print(median(start(2, 16, "profile", "--profile"))[1].split("ops")[0])
