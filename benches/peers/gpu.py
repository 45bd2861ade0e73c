"""`benches/gpu.rs` in PyTorch: the same network, decoder and updates with random weights, one line of JSON. Needs torch alone.

    python benches/peers/gpu.py [--size tiny] [--device cpu] [--methods AM-1,AM-3] [--batch 16] [--steps 20] [--repeats 3] [--compile] [--own-loss] [--tf32]

Blocks are checkpointed as ours are, attention is `scaled_dot_product_attention`, weights are bf16 on a card, adapters f32. The update reuses base
outputs and policy graphs as ours does; with `--own-loss` the loss runs base and policy again on the window, as published practice writes it.
Convolutions of the decoder are f32, as ours are; with `--tf32` as PyTorch has them by default.
"""

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

RANK, SCALE = 64, 100.0
SIZES = {
    "klein-4b": dict(width=3072, head=128, double=5, single=20, features=7680, channels=32, widths=[128, 256, 512, 512], resnets=2, groups=32, side=16, tokens=512),
    "tiny": dict(width=64, head=16, double=1, single=2, features=48, channels=4, widths=[8, 8, 16, 16], resnets=1, groups=4, side=2, tokens=8),
}


class Adapted(nn.Module):
    """A frozen matrix with a low-rank change of it, held in f32."""

    def __init__(self, inner, out, adapted):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, inner), requires_grad=False)
        self.on = adapted
        if adapted:
            self.a = nn.Parameter(torch.randn(RANK, inner, dtype=torch.float32) / RANK)
            self.b = nn.Parameter(torch.zeros(out, RANK, dtype=torch.float32))

    def forward(self, x, adapted):
        y = F.linear(x, self.weight)
        if adapted and self.on:
            y = y + F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))
        return y


def modulated(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def gated(x):
    a, b = x.chunk(2, -1)
    return F.silu(a) * b


def rotated(x, cos, sin):
    a, b = x.unflatten(-1, (-1, 2)).float().unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def attend(q, k, v, rope):
    q, k = rotated(q, *rope), rotated(k, *rope)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return y.transpose(1, 2).flatten(2)


class Projection(nn.Module):
    def __init__(self, d, head, adapted):
        super().__init__()
        self.head = head
        self.parts = nn.ModuleList([Adapted(d, d, adapted) for _ in range(3)])
        self.norms = nn.ParameterList([nn.Parameter(torch.ones(head), requires_grad=False) for _ in range(2)])

    def forward(self, x, adapted):
        q, k, v = [p(x, adapted).unflatten(2, (-1, self.head)) for p in self.parts]
        return F.rms_norm(q, (self.head,), self.norms[0], 1e-6), F.rms_norm(k, (self.head,), self.norms[1], 1e-6), v


class Stream(nn.Module):
    def __init__(self, d, head, adapted):
        super().__init__()
        self.project, self.out = Projection(d, head, adapted), Adapted(d, d, adapted)
        self.up, self.down = Adapted(d, 6 * d, False), Adapted(3 * d, d, False)

    def qkv(self, x, m, adapted):
        return self.project(modulated(x, m[0], m[1]), adapted)

    def finish(self, x, attended, m, adapted):
        x = x + m[2].unsqueeze(1) * self.out(attended, adapted)
        return x + m[5].unsqueeze(1) * self.down(gated(self.up(modulated(x, m[3], m[4]), adapted)), adapted)


class Double(nn.Module):
    def __init__(self, d, head):
        super().__init__()
        self.image, self.text = Stream(d, head, True), Stream(d, head, False)

    def forward(self, image, text, of_image, of_text, rope, adapted):
        n = text.shape[1]
        a, b = self.text.qkv(text, of_text, adapted), self.image.qkv(image, of_image, adapted)
        y = attend(*[torch.cat(pair, 1) for pair in zip(a, b)], rope)
        return self.image.finish(image, y[:, n:], of_image, adapted), self.text.finish(text, y[:, :n], of_text, adapted)


class Single(nn.Module):
    def __init__(self, d, head):
        super().__init__()
        self.head, self.d = head, d
        self.all, self.out = Adapted(d, 9 * d, True), Adapted(4 * d, d, True)
        self.norms = nn.ParameterList([nn.Parameter(torch.ones(head), requires_grad=False) for _ in range(2)])

    def forward(self, x, m, rope, adapted):
        q, k, v, up = self.all(modulated(x, m[0], m[1]), adapted).split([self.d, self.d, self.d, 6 * self.d], -1)
        q, k, v = [y.unflatten(2, (-1, self.head)) for y in (q, k, v)]
        q, k = F.rms_norm(q, (self.head,), self.norms[0], 1e-6), F.rms_norm(k, (self.head,), self.norms[1], 1e-6)
        y = torch.cat([attend(q, k, v, rope), gated(up)], 2)
        return x + m[2].unsqueeze(1) * self.out(y, adapted)


class Transformer(nn.Module):
    def __init__(self, z, compiled):
        super().__init__()
        d, channels = z["width"], 4 * z["channels"]
        self.z = z
        frozen = lambda inner, out: Adapted(inner, out, False)
        self.embed_image, self.embed_text = frozen(channels, d), frozen(z["features"], d)
        self.time = nn.ModuleList([frozen(256, d), frozen(d, d)])
        self.modulate = nn.ModuleList([frozen(d, 6 * d), frozen(d, 6 * d), frozen(d, 3 * d), frozen(d, 2 * d)])
        self.doubles = nn.ModuleList([Double(d, z["head"]) for _ in range(z["double"])])
        self.singles = nn.ModuleList([Single(d, z["head"]) for _ in range(z["single"])])
        self.project = frozen(d, channels)
        if compiled:
            for block in [*self.doubles, *self.singles]:
                block.compile()

    def rope(self, text, h, w, device):
        positions = [[0, 0, 0, j] for j in range(text)] + [[0, i // w, i % w, 0] for i in range(h * w)]
        dim = self.z["head"] // 4
        frequencies = 2000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = torch.cat([torch.tensor(positions, dtype=torch.float64)[:, i : i + 1] * frequencies for i in range(4)], 1)
        return [f(angles).float().to(device).unsqueeze(1) for f in (torch.cos, torch.sin)]

    def forward(self, x, t, text, adapted):
        b, c, h, w = x.shape
        compute, n = text.dtype, text.shape[1]
        if not hasattr(self, "angles"):
            self.angles = self.rope(n, h, w, x.device)
        waves = (1 - t)[:, None] * 1000 * torch.exp(-math.log(1e4) * torch.arange(128, device=x.device) / 128)
        vector = self.time[0](torch.cat([waves.cos(), waves.sin()], 1).to(compute), False)
        vector = F.silu(self.time[1](F.silu(vector), False))
        image = self.embed_image(x.flatten(2).transpose(1, 2).to(compute), False)
        text = self.embed_text(text, False)
        parts = [m(vector, False).chunk(n, 1) for m, n in zip(self.modulate, [6, 6, 3, 2])]
        run = lambda block, *inputs: checkpoint(block, *inputs, use_reentrant=False) if torch.is_grad_enabled() else block(*inputs)
        for block in self.doubles:
            image, text = run(block, image, text, parts[0], parts[1], self.angles, adapted)
        both = torch.cat([text, image], 1)
        for block in self.singles:
            both = run(block, both, parts[2], self.angles, adapted)
        y = modulated(both[:, n:], parts[3][1], parts[3][0])
        return -self.project(y, False).float().transpose(1, 2).reshape(b, c, h, w)


class Resnet(nn.Module):
    def __init__(self, inner, outer, groups):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(groups, inner, 1e-6), nn.GroupNorm(groups, outer, 1e-6)])
        self.convs = nn.ModuleList([nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)])
        self.shortcut = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x):
        h = x
        for norm, conv in zip(self.norms, self.convs):
            h = conv(F.silu(norm(h)))
        return self.shortcut(x) + h


class Middle(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(c, c, groups), Resnet(c, c, groups)])
        self.norm, self.linears = nn.GroupNorm(groups, c, 1e-6), nn.ModuleList([nn.Linear(c, c) for _ in range(4)])

    def forward(self, x):
        x = self.resnets[0](x)
        b, c, h, w = x.shape
        y = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = [self.linears[i](y).unsqueeze(1) for i in range(3)]
        y = self.linears[3](F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return self.resnets[1](x + y.transpose(1, 2).reshape(b, c, h, w))


class Decoder(nn.Module):
    def __init__(self, z):
        super().__init__()
        widths, g = z["widths"], z["groups"]
        top, c = widths[-1], z["channels"]
        self.first = nn.Sequential(nn.Conv2d(c, c, 1), nn.Conv2d(c, top, 3, padding=1))
        blocks, inner = [Middle(top, g)], top
        for i, outer in enumerate(reversed(widths)):
            for _ in range(z["resnets"] + 1):
                blocks.append(Resnet(inner, outer, g))
                inner = outer
            if i + 1 < len(widths):
                blocks.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(outer, outer, 3, padding=1)))
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Sequential(nn.GroupNorm(g, widths[0], 1e-6), nn.SiLU(), nn.Conv2d(widths[0], 3, 3, padding=1))

    def forward(self, x):
        x = F.pixel_shuffle(x.to(self.first[0].weight.dtype), 2)
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        image = self.last(x) / 2 + 0.5
        return image + (image.clamp(0, 1) - image).detach()


class Bench:
    def __init__(self, o, z):
        self.o, self.n, device = o, o.steps, o.device
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        with torch.device("meta"):
            self.net = Transformer(z, o.compile)
        self.net.to_empty(device=device)
        for name, p in self.net.named_parameters():
            adapter = name.endswith((".a", ".b"))
            p.data = p.data if adapter else p.data.to(dtype)
            if p.dim() == 1:
                p.data.fill_(1)
            elif name.endswith(".b"):
                p.data.zero_()
            else:
                p.data.normal_(0, 1 / RANK if adapter else z["width"] ** -0.5)
        self.params = [p for p in self.net.parameters() if p.requires_grad]
        self.decoder = Decoder(z).to(device).requires_grad_(False)
        self.text = torch.randn(o.batch, z["tokens"], z["features"], device=device, dtype=dtype)
        self.x0 = torch.randn(o.batch, 4 * z["channels"], z["side"], z["side"], device=device)
        self.optimizer = torch.optim.AdamW(self.params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=device != "cpu")

    def v(self, x, t, adapted):
        return self.net(x, torch.full((len(x),), t, device=x.device), self.text, adapted)

    def walk(self, n):
        x = self.x0
        with torch.no_grad():
            for i in range(n):
                x = x + self.v(x, i / self.n, True) / self.n
        return x

    def judged(self, x):
        return self.decoder(x).float().flatten(1).mean(1)

    def matching(self, k):
        h, x, states, own = 1 / self.n, self.walk(self.n - k), [], []
        window = range(self.n - k, self.n)
        for i in window:
            with torch.set_grad_enabled(not self.o.own_loss):
                v = self.v(x, i * h, True)
            states.append(x)
            own.append(v)
            x = x + h * v.detach()
        x = x.requires_grad_()
        a = -SCALE * torch.autograd.grad(self.judged(x).sum(), x)[0]
        loss = 0.0
        for j in reversed(range(k)):
            x = states[j].detach().requires_grad_()
            base = self.v(x, window[j] * h, False)
            a = a + h * torch.autograd.grad(base, x, a)[0]
            base = base.detach()
            if self.o.own_loss:
                with torch.no_grad():
                    base = self.v(states[j], window[j] * h, False)
                own[j] = self.v(states[j], window[j] * h, True)
            part = (own[j] - base + a).square().sum() / len(x)
            own[j] = None
            part.backward()
            loss = loss + part.detach()

    def direct(self, m, width):
        x = self.walk(m)
        (-SCALE * self.judged(x + width * self.v(x, m / self.n, True)).mean()).backward()

    def update(self, method, turn):
        if method.startswith("AM-"):
            self.matching({"AM-1": 1, "AM-3": min(3, self.n), "AM-Full": self.n}[method])
        elif method == "DRaFT-1":
            self.direct(self.n - 1, 1 / self.n)
        else:
            m = self.n - 1 - turn % min(5, self.n)
            self.direct(m, 1 - m / self.n)
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def finished(device):
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def matmul_rate(device):
    n, dtype = (512, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    x = torch.randn(n, n, device=device, dtype=dtype)
    for times in (3, 20):
        begun = time.perf_counter()
        for _ in range(times):
            x @ x.T
        finished(device)
    return 20 * 2 * n**3 / (time.perf_counter() - begun)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="klein-4b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", default="AM-1,AM-3,DRaFT-1,ReFL-5,AM-Full")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--own-loss", action="store_true")
    parser.add_argument("--tf32", action="store_true")
    o = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = o.tf32
    rate, found = matmul_rate(o.device), {}
    bench = Bench(o, SIZES[o.size])
    weights = finished(o.device)
    for method in o.methods.split(","):
        bench.update(method, 0)
        finished(o.device)
        repeats = -(-o.repeats // 5) * 5 if method == "ReFL-5" else o.repeats
        begun = time.perf_counter()
        for turn in range(repeats):
            bench.update(method, turn)
        peak = finished(o.device)
        found[method] = dict(seconds=(time.perf_counter() - begun) / repeats, peak_bytes=peak)
    print(json.dumps(dict(side="torch " + torch.__version__, device=o.device, size=o.size, batch=o.batch, steps=o.steps, compiled=o.compile,
                          own_loss=o.own_loss, tf32=o.tf32, matmul_tflops=rate / 1e12, weights_bytes=weights, methods=found)))


if __name__ == "__main__":
    main()
