#!/usr/bin/env python3
"""How long the prompt takes: from start to the first prompt, and from Tab to the list.

python benches/prompt.py target/release/amscript [rounds]
"""
import os, pty, select, statistics, sys, tempfile, time


def read_until(fd, what, limit=20.0):
    """Reads until `what` is on the screen; what was read."""
    seen, end = b"", time.monotonic() + limit
    while what not in seen:
        if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            raise SystemExit(f"no {what!r} in {seen!r}")
        seen += os.read(fd, 65536)
    return seen


def opened(binary, folder):
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", AMSCRIPT_HISTORY=f"{folder}/history", NO_COLOR="1")
        os.execv(binary, [binary])
    return pid, fd


def ended(pid, fd):
    os.write(fd, b"\x04")
    os.waitpid(pid, 0)
    os.close(fd)


def start(binary, folder):
    begun = time.monotonic()
    pid, fd = opened(binary, folder)
    read_until(fd, b"> ")
    took = time.monotonic() - begun
    ended(pid, fd)
    return took


def completions(binary, folder, rounds):
    """Tab behind names, methods and option keys, with a model, a reward and a hundred variables loaded."""
    pid, fd = opened(binary, folder)
    read_until(fd, b"> ")
    loaded = 'let base = flow("tiny/flux2"); let judge = reward("tiny/hpsv2"); let path = rollout(base, base.noise(1, rng(0)), base.encode(["a"]), #{ grid: uniform(2) });'
    for line in [loaded] + [f"let v{i} = {i};" for i in range(100)] + ['"lo" + "aded"']:
        os.write(fd, line.encode() + b"\r")
        read_until(fd, b"\x1b[K> ")
    time.sleep(0.5)
    times = []
    for typed, listed in [(b"ro", b"rollout"), (b"base.", b"encode"), (b"path.", b"states"), (b"rollout(base, #{ ", b"solver")] * rounds:
        os.write(fd, typed)
        time.sleep(0.15)
        while select.select([fd], [], [], 0)[0]:
            os.read(fd, 65536)
        begun = time.monotonic()
        os.write(fd, b"\t")
        read_until(fd, listed)
        times.append(time.monotonic() - begun)
        time.sleep(0.05)
        os.write(fd, b"q\x03")  # leaves a list that is shown in pages, then the line
        time.sleep(0.05)
        while select.select([fd], [], [], 0)[0]:
            os.read(fd, 65536)
    ended(pid, fd)
    return times


def main():
    binary, rounds = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, times in [("start to prompt", [start(binary, folder) for _ in range(rounds)]), ("Tab to list", completions(binary, folder, max(1, rounds // 4)))]:
            print(f"{name:<16} median {statistics.median(times) * 1e3:.1f} ms, most {max(times) * 1e3:.1f} ms, {len(times)} times")


if __name__ == "__main__":
    main()
