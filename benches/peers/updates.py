"""The update of every method beside the same in PyTorch: the same weights, batch and mathematics, f32, two threads each.

    python benches/peers/updates.py target/release/amscript WORK [--cases tiny-flux2,sit-s2] [--rounds 3] [--compile] [--methods "AM-1;VJP"]
    python benches/peers/updates.py target/release/amscript WORK --laws [--cases sit-s2]

WORK gets random weights in the published layouts and each side's figures. A round runs, each in a process of its own and in turn, ours;
(a) PyTorch as published practice writes it (the loss runs base and policy again on the states of the window); (b) PyTorch with our
reuse (base outputs of the adjoint's products, policy graphs of the rollout); with --compile, both with `torch.compile`. Printed are
the processor and what products reach on it on both sides, medians over rounds of medians within, ratios ours / theirs (none where other
work kept more than BUSY of a processor), the largest difference of the losses, and with --memory the peak memory of processes that take
one method alone. Figures are kept in WORK/figures.json, so that a run that was broken off goes on; without it all is
measured again. --laws: ours alone, against what operations predict and against straight lines in steps, active steps and batch.
Needs torch, torchvision, diffusers, transformers, peft, open_clip_torch and tokenizers.
"""

import argparse
import copy
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from rewards import hf_clip, normalised, unit

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parent.parent / "assets"
THREADS = 2
BUSY = 0.15  # of a processor: with more of it taken by other work, ratios say nothing
# case: family, sizes, samples per update, steps N
CASES = {
    "tiny-flux2": ("flux2", None, 8, 20),
    "tiny-sit": ("sit", None, 8, 20),
    "sit-s2": ("sit", dict(depth=12, hidden_size=384, num_heads=6), 2, 10),
    "sit-b2": ("sit", dict(depth=12, hidden_size=768, num_heads=12), 1, 8),
    "flux2-300m": ("flux2", dict(width=1024, double=4, single=12), 1, 3),
}
AGAIN = ", checkpoint_steps"  # ours with this option, beside theirs of the name before
METHODS = ["AM-1", "AM-3", "AM-Full", "AM-Full" + AGAIN, "DRaFT-1", "ReFL-5", "Flow-GRPO", "rollout", "VJP", "decode + reward"]
DRAWN = ["ReFL-5", "Flow-GRPO"]  # draw a step or noise, other ones on each side: their losses are not compared
SCALE, RANK = 100.0, 8


class Block(torch.nn.Module):
    """A block of SiT, with the published names."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attn = torch.nn.ModuleDict({"qkv": torch.nn.Linear(width, 3 * width), "proj": torch.nn.Linear(width, width)})
        self.mlp = torch.nn.ModuleDict({"fc1": torch.nn.Linear(width, 4 * width), "fc2": torch.nn.Linear(4 * width, width)})
        self.adaLN_modulation = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(width, 6 * width))

    def forward(self, x, c):
        m = [part.unsqueeze(1) for part in self.adaLN_modulation(c).chunk(6, dim=1)]
        norm = lambda x, i: F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + m[i + 1]) + m[i]
        b, n, d = x.shape
        q, k, v = self.attn["qkv"](norm(x, 0)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + m[2] * self.attn["proj"](attended)
        return x + m[5] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](norm(x, 3)), approximate="tanh"))


class Sit(torch.nn.Module):
    """SiT (arXiv:2401.08740) without label dropping, with the published names."""

    def __init__(self, depth, hidden_size, num_heads, input_size, patch_size=2, num_classes=1000, in_channels=4, **_):
        super().__init__()
        d, self.side, self.patch, self.channels = hidden_size, input_size // patch_size, patch_size, in_channels
        self.x_embedder = torch.nn.ModuleDict({"proj": torch.nn.Conv2d(in_channels, d, patch_size, patch_size)})
        self.pos_embed = torch.nn.Parameter(torch.randn(1, self.side**2, d) * 0.5, requires_grad=False)
        mlp = torch.nn.Sequential(torch.nn.Linear(256, d), torch.nn.SiLU(), torch.nn.Linear(d, d))
        self.t_embedder = torch.nn.ModuleDict({"mlp": mlp})
        self.y_embedder = torch.nn.ModuleDict({"embedding_table": torch.nn.Embedding(num_classes + 1, d)})
        self.blocks = torch.nn.ModuleList([Block(d, num_heads) for _ in range(depth)])
        self.final_layer = torch.nn.ModuleDict({"linear": torch.nn.Linear(d, patch_size**2 * 2 * in_channels)})
        self.final_layer["adaLN_modulation"] = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(d, 2 * d))

    def forward(self, x, t, y):
        angles = t[:, None] * torch.exp(-9.210340371976184 * torch.arange(128) / 128)
        c = self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], 1)) + self.y_embedder["embedding_table"](y)
        h = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.final_layer["adaLN_modulation"](c).chunk(2, dim=1)
        h = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
        h = self.final_layer["linear"](h).view(len(x), self.side, self.side, self.patch, self.patch, 2 * self.channels)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), -1, 2 * self.side, 2 * self.side)[:, : self.channels]


def folder(work, case):
    family, sizes, _, _ = CASES[case]
    return ASSETS / "tiny" / family if sizes is None else work / case


def prepare(binary, work, case):
    """Weights of a case, unless they are there; then what both sides start from, written by ours: noise, embeddings, texts."""
    from diffusers import AutoencoderKL

    family, sizes, batch, _ = CASES[case]
    if sizes and not folder(work, case).exists():
        if family == "flux2":
            settings = sum([["--set", f"{k}={v}"] for k, v in sizes.items()], [])
            script = HERE.parent.parent / "scripts/pretrain/random.rhai"
            subprocess.run([binary, script, "--out", folder(work, case), *settings], check=True)
        else:
            torch.manual_seed(0)
            where, config = folder(work, case), dict(sizes, input_size=32, patch_size=2, num_classes=1000, learn_sigma=True)
            model = Sit(**config)
            where.mkdir(parents=True)
            save_file(model.state_dict(), where / "model.safetensors")
            (where / "config.json").write_text(json.dumps(config))
            kinds = dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
            AutoencoderKL(latent_channels=4, block_out_channels=[32, 64, 64, 64], layers_per_block=1, **kinds).save_pretrained(where / "vae")
    if sizes:
        vision = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=32, image_size=224, hidden_act="quick_gelu")
        text = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407)
        hf_clip(work / "clip-b32", vision_config=vision, text_config=text, projection_dim=512)
    (work / f"{case}.json").write_text(json.dumps(ours(binary, work, case, ["prepare"], 1)[0]))


def judge_path(work, case):
    return ASSETS / "tiny/pickscore" if CASES[case][1] is None else work / "clip-b32"


def judge_settings(work, case):
    return dict(judge=judge_path(work, case), kind="pickscore" if CASES[case][1] is None else "clipscore")


def judge(work, case, texts):
    """Scores `[batch]` of images in [0, 1], texts encoded beforehand; PickScore's for the tiny model, CLIPScore's for the other."""
    from transformers import CLIPModel

    path = judge_path(work, case)
    model = CLIPModel.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
    tiny = CASES[case][1] is None
    if tiny:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        ids = [tokenizer.encode(text).ids[:24] for text in texts]
        ids = torch.tensor([row + [340] * (24 - len(row)) for row in ids])
    else:
        import open_clip

        ids = open_clip.get_tokenizer("ViT-B-32")(texts)
    features = lambda found: unit(getattr(found, "pooler_output", found))
    with torch.no_grad():
        wanted = features(model.get_text_features(input_ids=ids))
    size = model.config.vision_config.image_size
    factor = model.logit_scale.exp().item() if tiny else 1.0
    return lambda x: factor * (features(model.get_image_features(pixel_values=normalised(x, size))) * wanted).sum(-1)


def levels(where):
    """The kinds of an autoencoder's blocks, which small configs leave out."""
    n = len(json.loads((where / "vae/config.json").read_text())["block_out_channels"])
    return dict(down_block_types=["DownEncoderBlock2D"] * n, up_block_types=["UpDecoderBlock2D"] * n)


def networks(work, case, compiled):
    """Base, policy with LoRA on the same weights, the reward of latents, and the start."""
    from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2Transformer2DModel
    from peft import LoraConfig, inject_adapter_in_model

    family, _, batch, _ = CASES[case]
    start, where = load_file(work / "runs/updates" / f"{case}.safetensors"), folder(work, case)
    texts = json.loads((work / f"{case}.json").read_text())["texts"]
    if family == "flux2":
        base = Flux2Transformer2DModel.from_pretrained(where / "transformer", torch_dtype=torch.float32)
        vae = AutoencoderKLFlux2.from_pretrained(where / "vae", **levels(where))
        targets = r"(.*\.attn\.(to_q|to_k|to_v|to_out\.0|to_qkv_mlp_proj))|(single_transformer_blocks\.\d+\.attn\.to_out)"
    else:
        config = json.loads((where / "config.json").read_text())
        base, vae = Sit(**config), AutoencoderKL.from_pretrained(where / "vae", **levels(where))
        base.load_state_dict(load_file(where / "model.safetensors"))
        targets = r".*\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
    base.eval().requires_grad_(False)
    vae.eval().requires_grad_(False)
    policy = copy.deepcopy(base)
    for mine, theirs in zip(policy.parameters(), base.parameters()):
        mine.data = theirs.data
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets), policy)
    params = [p for p in policy.parameters() if p.requires_grad]
    score = judge(work, case, texts)

    def decode(z):
        if family == "sit":
            return vae.decode(z / vae.config.scaling_factor).sample
        mean, variance = (v.view(1, -1, 1, 1) for v in (vae.bn.running_mean, vae.bn.running_var))
        z = z * torch.sqrt(variance + vae.config.batch_norm_eps) + mean
        b, c, h, w = z.shape
        return vae.decode(z.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)).sample

    def judged(z):
        image = decode(z) / 2 + 0.5
        return score(image + (image.clamp(0, 1) - image).detach())  # as ours: the gradient passes the clamp

    if compiled:
        base, policy, judged = torch.compile(base, dynamic=False), torch.compile(policy, dynamic=False), torch.compile(judged, dynamic=False)

    def field(model):
        if family == "sit":
            labels = start["labels"].long()
            return lambda x, t, rows=slice(None): model(x, torch.full((len(x),), t), labels[rows])
        b, c, h, w = start["x0"].shape
        grid = lambda n, m: torch.tensor([[0, i, j, 0] for i in range(n) for j in range(m)])
        text = torch.tensor([[0, 0, 0, j] for j in range(start["embeddings"].shape[1])])

        def velocity(x, t, rows=slice(None)):
            tokens, level = x.flatten(2).transpose(1, 2), torch.full((len(x),), 1 - t)
            out = model(tokens, start["embeddings"][rows], level, grid(h, w), text, return_dict=False)[0]
            return -out.transpose(1, 2).reshape(len(x), c, h, w)

        return velocity

    return field(base), field(policy), params, judged, start["x0"]


def methods(base, policy, params, judged, x0, steps, reuse):
    """One closure per method that takes an update, or runs a part of it, and gives the loss."""
    optimizer = torch.optim.AdamW(params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01)
    start, h = [p.detach().clone() for p in params], 1 / steps

    def afresh():
        for p, was in zip(params, start):
            p.data.copy_(was)

    def step(loss):
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def walk(n):
        x = x0
        with torch.no_grad():
            for i in range(n):
                x = x + h * policy(x, i * h)
        return x

    def terminal(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(judged(x).sum(), x)[0]

    def product(x, t, a):
        x = x.detach().requires_grad_()
        v = base(x, t)
        return v.detach(), torch.autograd.grad(v, x, a)[0]

    def adjoint_matching(k):
        x = walk(steps - k)
        window = range(steps - k, steps)
        states, own = [], []
        for i in window:
            with torch.set_grad_enabled(reuse):
                v = policy(x, i * h)
            states.append(x)
            own.append(v)
            x = x + h * v.detach()
        a = -SCALE * terminal(x)
        targets, bases = [], []
        for x, i in zip(reversed(states), reversed(window)):
            v, pulled = product(x, i * h, a)
            a = a + h * pulled
            targets.insert(0, -a)
            bases.insert(0, v)
        total = 0.0
        for j, i in enumerate(window):
            if not reuse:
                with torch.no_grad():
                    bases[j] = base(states[j], i * h)
                own[j] = policy(states[j], i * h)
            loss = (own[j] - bases[j] - targets[j]).square().sum() / len(x0)
            own[j] = None
            loss.backward()
            total += loss.item()
        return step(total)

    def direct(x, width, t):
        loss = -judged(x + width * policy(x, t)).mean()
        loss.backward()
        return step(loss.item())

    drawn = iter(range(10**9))

    def refl():
        m = steps - 1 - next(drawn) % min(5, steps)
        return direct(walk(m), 1 - m * h, m * h)

    def flow_grpo():
        """arXiv:2505.05470: noise at all steps, all but the last trained, two optimizer steps, a pull to the base."""
        rows = [slice(0, len(x0) // 2), slice(len(x0) // 2, len(x0))]
        paths, ends = [], []
        for part in rows:
            x, path = x0[part], []
            for i in range(steps):
                t = i * h
                w = 0.49 * (1 - t) / max(t, h)
                rho, pull = w * t / (2 * (1 - t)), w / (2 * (1 - t))
                with torch.set_grad_enabled(reuse and part == rows[0] and i < steps - 1):
                    v = policy(x, t, part)
                z = torch.randn_like(x)
                if i < steps - 1:
                    path.append((x, t, v, z, h**0.5 * (1 + rho) / w**0.5, (h * (1 + rho)) ** 2 / (2 * w)))
                x = x + h * ((1 + rho) * v.detach() - pull * x) + (h * w) ** 0.5 * z
            paths.append(path)
            ends.append(x)
        with torch.no_grad():
            reward = judged(torch.cat(ends))
        advantages = ((reward - reward.mean()) / (reward.std() + 1e-4)).clamp(-5, 5)
        first = None
        for part, path in zip(rows, paths):
            total, a = 0.0, advantages[part]
            for i, (x, t, old, z, g, pull) in enumerate(path):
                own = old if old.requires_grad else policy(x, t, part)
                with torch.no_grad():
                    reference = base(x, t, part)
                moved = own - old.detach()
                q = (g * z * moved - g**2 * moved**2 / 2).flatten(1).mean(1).exp()
                loss = torch.maximum(-a * q, -a * q.clamp(1 - 1e-4, 1 + 1e-4)).mean()
                loss = (loss + 0.04 * pull * (own - reference).square().mean()) / len(path)
                loss.backward()
                path[i] = None
                total += loss.item()
            step(total)
            first = total if first is None else first
        return first

    return {
        "afresh": afresh,
        "load": lambda: 0.0,
        "AM-1": lambda: adjoint_matching(1),
        "AM-3": lambda: adjoint_matching(3),
        "AM-Full": lambda: adjoint_matching(steps),
        "DRaFT-1": lambda: direct(walk(steps - 1), h, 1 - h),
        "ReFL-5": refl,
        "Flow-GRPO": flow_grpo,
        "rollout": lambda: walk(steps).square().mean().item(),
        "VJP": lambda: product(x0, 0.5, x0)[1].square().mean().item(),
        "decode + reward": lambda: terminal(x0).square().mean().item(),
    }


def processor():
    """Its name, threads and the widest vectors of f32 products."""
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.M)
    words = set(re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)[1].split())
    width = next(name for flag, name in [("avx512f", "AVX-512"), ("avx2", "AVX2"), ("asimd", "NEON"), ("", "none known")] if not flag or flag in words)
    return f"{found[1] if found else os.uname().machine}, {width}, {THREADS} of {os.cpu_count()} processors"


def torch_rates():
    """GFLOP/s of a product of large square matrices, and of one whose weight comes from memory: as `rate.rs` measures ours."""
    torch.set_num_threads(THREADS)

    def rate(rows, inner, out, count):
        x, weights = torch.randn(rows, inner), [torch.randn(out, inner) for _ in range(count)]
        begun, best = time.perf_counter(), float("inf")
        while time.perf_counter() < begun + 0.15:
            start = time.perf_counter()
            for weight in weights:
                F.linear(x, weight)
            best = min(best, time.perf_counter() - start)
        return 2e-9 * rows * inner * out * count / best

    print(json.dumps(dict(large=rate(2048, 2048, 2048, 1), cold=rate(320, 1024, 3072, 6))))


def rates(binary, work):
    """The line above all tables: the processor, and both sides' products on it."""
    (work / "nothing.rhai").write_text("0;\n")
    env = dict(os.environ, RAYON_NUM_THREADS=str(THREADS))
    told = subprocess.run([binary, "run", "nothing.rhai", "--profile"], check=True, capture_output=True, text=True, cwd=work, env=env).stderr
    own = re.search(r"this processor: ([\d.]+) GFLOP/s .*, ([\d.]+) in", told).groups()
    other, _ = run([sys.executable, HERE / "updates.py", binary, work, "--theirs", "rates"], work)
    print(f"{processor()}. GFLOP/s, ours and torch's: {own[0]} and {other['large']:.1f} in large products, {own[1]} and {other['cold']:.1f} in 320 x 1024 x 3072 with weights from memory.")


def theirs(work, case, names, repeats, variant):
    """In a process of its own: medians of seconds, and the first loss of each method."""
    torch.set_num_threads(THREADS)
    parts = networks(work, case, variant.endswith("compiled"))
    chosen = methods(*parts, CASES[case][3], variant.startswith("b"))
    found = {}
    for name in names:
        chosen["afresh"]()
        timed = lambda: (time.perf_counter(), chosen[name](), time.perf_counter())
        begun, loss, ended = timed()
        times = [] if repeats else [ended - begun]  # without repeats the first is told
        # ReFL draws its step: each of the five is timed as often.
        for _ in range(5 * -(-repeats // 5) if name == "ReFL-5" else repeats):
            begun, _, ended = timed()
            times.append(ended - begun)
        found[name] = dict(seconds=statistics.mean(times) if name == "ReFL-5" else statistics.median(times), loss=loss)
    print(json.dumps(found))


def busy():
    """Seconds that all processors together were busy, and those of children of this process that have ended."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (user + nice + system) / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime


def run(command, folder):
    """What a process prints last, as JSON, with the processors that others kept busy meanwhile; and its peak resident memory in MB."""
    env = dict(os.environ, OMP_NUM_THREADS=str(THREADS), RAYON_NUM_THREADS=str(THREADS))
    (all_before, own_before), begun = busy(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([str(c) for c in command], stdout=out, text=True, env=env, cwd=folder)
        peak = 0  # its own: rusage of a child counts the parent's pages before exec
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            peak = int(found[1]) / 1024 if found else peak
            time.sleep(0.01)
        if process.returncode:
            sys.exit(f"{command} failed")
        out.seek(0)
        (all_after, own_after), ended = busy(), time.perf_counter()
        others = (all_after - all_before - own_after + own_before) / (ended - begun)
        return json.loads(out.read().strip().splitlines()[-1]) | {"others": round(others, 2)}, peak


def ours(binary, work, case, names, repeats, **changed):
    settings = dict(name=case, folder=folder(work, case), **judge_settings(work, case), batch=CASES[case][2], steps=CASES[case][3],
                    methods=json.dumps(names), repeats=repeats, scale=SCALE, rank=RANK) | changed
    given = sum([["--set", f"{k}={v}"] for k, v in settings.items()], [])
    return run([binary, HERE / "updates.rhai", *given], work)


class Figures:
    """What was measured so far, by case and side, kept in a file."""

    def __init__(self, path):
        self.path, self.found = path, json.loads(path.read_text()) if path.exists() else {}

    def get(self, key, n, measure):
        """`n` measurements under `key`, those that are missing made now; one that fails is kept as none."""
        have = self.found.setdefault(key, [])
        while len(have) < n:
            have.append(measure())
            self.path.write_text(json.dumps(self.found))
        return have[:n]


def compare(o, names):
    """The table of times, round by round, and of peak memory."""
    variants = ["a", "b"] + (["a compiled", "b compiled"] if o.compile else [])
    figures = Figures(o.work / "figures.json")

    def measure(case, side, names, repeats):
        if side == "ours":
            return ours(o.binary, o.work, case, names, repeats)
        command = [sys.executable, HERE / "updates.py", o.binary, o.work, "--cases", case, "--methods", ";".join(names), "--repeats", repeats]
        try:
            return run([*command, "--theirs", side], o.work)
        except SystemExit:
            if "compiled" not in side:
                raise
            return None  # torch.compile gave up

    rates(o.binary, o.work)
    for case in o.cases.split(","):
        prepare(o.binary, o.work, case)
        sides = ["ours", *variants]
        asked = lambda side: [name for name in names if side == "ours" or not name.endswith(AGAIN)]
        key = lambda side: f"{case}, {side}: {','.join(asked(side))}"
        for n in range(1, o.rounds + 1):
            for side in sides:
                figures.get(key(side), n, lambda: (measure(case, side, asked(side), o.repeats) or [None])[0])
        found = {side: figures.get(key(side), o.rounds, None) for side in sides}
        entry = lambda side, f, name: f[name if side == "ours" else name.removesuffix(AGAIN)]
        seconds = lambda side, name: None if None in found[side] else statistics.median(entry(side, f, name)["seconds"] for f in found[side])
        busy = any(f and f["others"] > BUSY for side in sides for f in found[side])
        ratio = lambda mine, other: "-" if other is None else f"{mine / other:.2f}"
        head = " | ".join(f"({v}), s | / ({v})" for v in variants)
        print(f"\n## {case}: batch {CASES[case][2]}, {CASES[case][3]} steps\n\n| | ours, s | {head} | losses differ by |\n" + "|---" * (3 + 2 * len(variants)) + "|")
        loads = " | ".join(str([f and f["others"] for f in found[side]]) for side in sides)
        print(f"| processors busy with other work, by round | {loads} | |")
        if busy:
            print(f"| no ratios: other work kept more than {BUSY} of a processor | " + "| " * (1 + 2 * len(variants)) + "|")
        for name in names:
            mine, loss = seconds("ours", name), found["ours"][0][name]["loss"]
            differs = max(abs(entry(v, found[v][0], name)["loss"] - loss) / max(abs(loss), 1e-9) for v in variants if found[v][0])
            cells = " | ".join(f"{seconds(v, name) or float('nan'):.3f} | {'-' if busy else ratio(mine, seconds(v, name))}" for v in variants)
            print(f"| {name} | {mine:.3f} | {cells} | {'-' if name in DRAWN else f'{differs:.1e}'} |", flush=True)
        if o.memory:
            for name in ["load", *o.memory]:
                peak = {}
                for side in sides:
                    taken_name = name if side == "ours" else name.removesuffix(AGAIN)
                    taken = figures.get(f"{case}, {side}: peak of {taken_name}", 1, lambda: (measure(case, side, [taken_name], 0) or [None, None])[1])
                    peak[side] = taken[0]
                cells = " | ".join(f"{peak[v] or float('nan'):.0f} | {ratio(peak['ours'], peak[v])}" for v in variants)
                print(f"| peak MB, {name} | {peak['ours']:.0f} | {cells} | |", flush=True)


def laws(o):
    """Ours: AM-3 / AM-1 and AM-Full / AM-1 beside the operations that `--plan` counts, and how straight the lines are."""
    figures = Figures(o.work / "laws.json")
    for case in o.cases.split(","):
        prepare(o.binary, o.work, case)
        batch, n = CASES[case][2:]
        take = lambda rounds, name, **changed: figures.get(
            f"{case}, {name}, {changed}", rounds, lambda: ours(o.binary, o.work, case, [name], o.repeats, **changed)[0][name]["seconds"]
        )
        measure = lambda name, **changed: statistics.median(take(o.rounds, name, **changed))
        lines = [
            ("rollout over steps", [(k, "rollout", dict(steps=k)) for k in (n // 2, n, 2 * n)]),
            ("AM over active steps", [(k, f"AM-{k}", {}) for k in (1, n // 2, n)]),
            ("AM-3 over batch", [(b, "AM-3", dict(batch=b)) for b in (batch, 2 * batch, 4 * batch)]),
        ]
        for k in range(1, o.rounds + 1):  # in turn, so that a slow minute meets all
            for name in ["AM-1", "AM-3", "AM-Full"]:
                take(k, name)
            for _, name, changed in sum([points for _, points in lines], []):
                take(k, name, **changed)
        print(f"\n## {case}: batch {batch}, {n} steps\n\n| | operations | time | time / operations |\n|---|---|---|---|")
        work = {name: operations(o.binary, o.work, case, name) for name in ["AM-1", "AM-3", "AM-Full"]}
        for name in ["AM-3", "AM-Full"]:
            predicted, taken = work[name] / work["AM-1"], measure(name) / measure("AM-1")
            print(f"| {name} / AM-1 | {predicted:.2f} | {taken:.2f} | {taken / predicted:.2f} |", flush=True)
        for what, points in lines:
            taken, at = [measure(name, **changed) for _, name, changed in points], [k for k, _, _ in points]
            between = taken[0] + (taken[2] - taken[0]) * (at[1] - at[0]) / (at[2] - at[0])
            cells = ", ".join(f"{t:.3f} s at {k}" for k, t in zip(at, taken))
            print(f"\n{what}: {cells}; the middle one is {taken[1] / between - 1:+.1%} off the line through the others", flush=True)


def operations(binary, work, case, name):
    """Operations of an update, by `--plan`."""
    command = [binary, "run", HERE / "updates.rhai", "--plan"]
    settings = dict(name=case, folder=folder(work, case), **judge_settings(work, case), batch=CASES[case][2], steps=CASES[case][3],
                    methods=json.dumps([name]), scale=SCALE, rank=RANK)
    text = subprocess.run([*command, *sum([["--set", f"{k}={v}"] for k, v in settings.items()], [])], check=True, capture_output=True, text=True, cwd=work).stdout
    number, unit = re.search(r"an update\s+([\d.]+) (\w)FLOP", text).groups()
    return float(number) * dict(k=1e3, M=1e6, G=1e9, T=1e12)[unit]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--methods", default=";".join(METHODS), help="with ; between them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory", type=lambda given: given.split(";"), help="with ; between them: peak memory of these methods, too, each in a process of its own")
    parser.add_argument("--laws", action="store_true")
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    o = parser.parse_args()
    o.binary, o.work, names = o.binary.resolve(), o.work.resolve(), o.methods.split(";")
    if o.theirs == "rates":
        return torch_rates()
    if o.theirs:
        return theirs(o.work, o.cases, names, o.repeats, o.theirs)
    o.work.mkdir(parents=True, exist_ok=True)
    if o.laws:
        return laws(o)
    compare(o, names)


if __name__ == "__main__":
    main()
