"""Rewards and image metrics beside their reference libraries: the same random weights of published size, the same images, two threads each.

    python benches/peers/rewards.py target/release/amscript WORK [case ...]

WORK gets the weights (about 6 GB for all cases). Each round runs ours and theirs in turn, each in a process of its own; printed are medians
over the rounds, the ratio ours / theirs, and the largest difference of the scores. Needs torch, torchvision, transformers, open_clip_torch,
lpips, pytorch-msssim and, for `imagereward`, image-reward (its package is imported in parts, with what newer transformers lack put back).
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

THREADS, ROUNDS = 2, 3
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HERE = Path(__file__).parent
# case: images in a batch, their side
CASES = {"clipscore": (8, 256), "aesthetic": (2, 256), "hpsv2": (1, 256), "imagereward": (2, 256), "lpips_alex": (4, 256), "lpips_vgg": (1, 256), "ms_ssim": (8, 256)}
PROMPTS = ["a red cube on a wooden table", "two dogs on the beach", "an old map", "a glass of water", "a street at night", "a cat with two horns", "a boat", "a tree in the snow"]


def images(case):
    batch, side = CASES[case]
    draw = torch.Generator().manual_seed(0)
    return torch.rand(2 if case.startswith(("lpips", "ms_ssim")) else 1, batch, 3, side, side, generator=draw)


def normalised(x, size=224):
    from torchvision.transforms.v2 import functional as F

    x = F.resize(x, size, interpolation=F.InterpolationMode.BICUBIC, antialias=True)
    return F.normalize(F.center_crop(x, size), MEAN, STD)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def hf_clip(folder, **config):
    """A CLIP of transformers with random weights, written once."""
    from transformers import CLIPConfig, CLIPModel

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(**config)).save_pretrained(folder)
    return CLIPModel.from_pretrained(folder).eval().requires_grad_(False)


def clip_scores(model, x, texts):
    embedding = model.get_image_features(pixel_values=normalised(x))
    return (unit(getattr(embedding, "pooler_output", embedding)) * texts).sum(-1)


def tokens(prompts):
    import open_clip

    return open_clip.get_tokenizer("ViT-H-14")(prompts)


def clipscore(work):
    vision = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=32, image_size=224, hidden_act="quick_gelu")
    text = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407)
    model = hf_clip(work / "clip-b32", vision_config=vision, text_config=text, projection_dim=512)
    with torch.no_grad():
        texts = model.get_text_features(input_ids=tokens(PROMPTS[: CASES["clipscore"][0]]))
        texts = unit(getattr(texts, "pooler_output", texts))
    return lambda x: clip_scores(model, x[0], texts)


def aesthetic(work):
    vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14, image_size=224, hidden_act="quick_gelu")
    text = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407)
    model = hf_clip(work / "clip-l14", vision_config=vision, text_config=text, projection_dim=768)
    torch.manual_seed(1)
    sizes = [768, 1024, 128, 64, 16, 1]
    layers = torch.nn.ModuleDict({str(i): torch.nn.Linear(a, b) for i, a, b in zip([0, 2, 4, 6, 7], sizes, sizes[1:])}).requires_grad_(False)
    path = work / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth"
    path.parent.mkdir(exist_ok=True)
    torch.save({f"layers.{k}": v for k, v in layers.state_dict().items()}, path)

    def score(x):
        embedding = model.get_image_features(pixel_values=normalised(x[0]))
        h = unit(getattr(embedding, "pooler_output", embedding))
        for layer in layers.values():
            h = layer(h)
        return h.squeeze(-1)

    return score


def hpsv2(work):
    import open_clip

    path = work / "hpsv2" / "HPS_v2.1_compressed.pt"
    path.parent.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-H-14", pretrained=None).eval().requires_grad_(False)
    if not path.exists():
        torch.save({"state_dict": {k: v.half() for k, v in model.state_dict().items()}}, path)
    model.load_state_dict({k: v.float() for k, v in torch.load(path)["state_dict"].items()})
    with torch.no_grad():
        texts = model.encode_text(tokens(PROMPTS[: CASES["hpsv2"][0]]), normalize=True)
    return lambda x: (model.encode_image(normalised(x[0]), normalize=True) * texts).sum(-1)


def lpips_net(net):
    def make(work):
        import lpips
        import safetensors.torch

        folder = work / f"lpips-{net}"
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval().requires_grad_(False)
        state = model.state_dict()
        trunk = {f"features.{k.split('.')[2]}.{k.split('.')[3]}": v for k, v in state.items() if k.startswith("net.slice")}
        heads = {k: v for k, v in state.items() if k.startswith("lin") and not k.startswith("lins")}
        safetensors.torch.save_file({k: v.contiguous() for k, v in trunk.items()}, folder / "trunk.safetensors")
        safetensors.torch.save_file({k: v.contiguous() for k, v in heads.items()}, folder / "heads.safetensors")
        return lambda x: model(x[0], x[1], normalize=True).flatten()

    return make


def ms_ssim(work):
    from pytorch_msssim import ms_ssim

    return lambda x: ms_ssim(x[0], x[1], data_range=1, size_average=False)


def imagereward(work):
    """BLIP and the head of image-reward 1.5; its package imports far more than they need, and names that transformers dropped."""
    import importlib.util
    import sys
    import types

    import transformers
    from transformers import BertConfig, modeling_utils, pytorch_utils

    root = Path(importlib.util.find_spec("ImageReward").submodule_search_locations[0])
    for name in ["ImageReward", "ImageReward.models", "ImageReward.models.BLIP"]:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    modeling_utils.apply_chunking_to_forward = pytorch_utils.apply_chunking_to_forward
    modeling_utils.prune_linear_layer = pytorch_utils.prune_linear_layer
    modeling_utils.find_pruneable_heads_and_indices = None
    base = transformers.PreTrainedModel
    base.get_head_mask = lambda self, mask, n, *_: [None] * n
    base.invert_attention_mask = lambda self, mask: (1.0 - mask[:, None, None, :]) * -10000.0
    from ImageReward.models.BLIP.med import BertModel
    from ImageReward.models.BLIP.vit import VisionTransformer

    BertModel.init_weights = lambda self: self.apply(self._init_weights)
    config = BertConfig(vocab_size=30524, encoder_width=1024, add_cross_attention=True, attn_implementation="eager")
    config.encoder_width, config.add_cross_attention = 1024, True
    torch.manual_seed(0)
    vision = VisionTransformer(img_size=224, patch_size=16, embed_dim=1024, depth=24, num_heads=16).eval().requires_grad_(False)
    text = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    sizes = [768, 1024, 128, 64, 16, 1]
    head = torch.nn.ModuleDict({str(i): torch.nn.Linear(a, b) for i, a, b in zip([0, 2, 4, 6, 7], sizes, sizes[1:])}).requires_grad_(False)
    state = {f"blip.visual_encoder.{k}": v for k, v in vision.state_dict().items()}
    state |= {f"blip.text_encoder.{k}": v for k, v in text.state_dict().items()}
    state |= {f"mlp.layers.{k}": v for k, v in head.state_dict().items()}
    folder = work / "imagereward"
    folder.mkdir(exist_ok=True)
    if not (folder / "ImageReward.pt").exists():
        torch.save(state, folder / "ImageReward.pt")
        (folder / "med_config.json").write_text(config.to_json_string())
        words = sorted({word for prompt in PROMPTS for word in prompt.split()})
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        vocabulary += [f"[unused{i}]" for i in range(30522 - len(vocabulary))]
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
    vocabulary = (folder / "vocab.txt").read_text().split("\n")
    rows = [[2, *(vocabulary.index(word) for word in prompt.split()), 3] for prompt in PROMPTS[: CASES["imagereward"][0]]]
    ids = torch.tensor([row + [0] * (35 - len(row)) for row in rows])

    def score(x):
        tokens = vision(normalised(x[0]))
        everywhere = torch.ones(tokens.shape[:-1], dtype=torch.long)
        out = text(ids, attention_mask=(ids > 0).long(), encoder_hidden_states=tokens, encoder_attention_mask=everywhere, return_dict=True)
        h = out.last_hidden_state[:, 0]
        for layer in head.values():
            h = layer(h)
        return (h.squeeze(-1) - 0.16717362830052426) / 1.0333394966054072

    return score


MAKE = {"clipscore": clipscore, "aesthetic": aesthetic, "hpsv2": hpsv2, "imagereward": imagereward, "lpips_alex": lpips_net("alex"), "lpips_vgg": lpips_net("vgg"), "ms_ssim": ms_ssim}


def theirs(case, work):
    """Times one case in this process: seconds of a score and of a score with its gradient, and the scores."""
    torch.set_num_threads(THREADS)
    score = MAKE[case](work)
    x = images(case)

    def plain():
        with torch.no_grad():
            return score(x)

    def gradient():
        y = x.clone().requires_grad_()
        score(y).sum().backward()
        return y.grad

    def median(f, n=3):
        f()
        times = []
        for _ in range(n):
            start = time.perf_counter()
            f()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    return {"score": median(plain), "gradient": median(gradient), "values": plain().tolist()}


def ours(binary, case, work):
    environment = dict(os.environ, RAYON_NUM_THREADS=str(THREADS))
    out = subprocess.run(
        [binary, str(HERE / "rewards.rhai"), "--out", str(work / "run"), "--set", f'name="{case}"', "--set", f'work="{work}"'],
        capture_output=True, text=True, env=environment,
    )
    lines = [line for line in out.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(out.stdout + out.stderr)
    return json.loads(lines[-1])


def main():
    if sys.argv[1] == "theirs":
        print(json.dumps(theirs(sys.argv[2], Path(sys.argv[3]))))
        return
    binary, work, cases = sys.argv[1], Path(sys.argv[2]), sys.argv[3:] or list(MAKE)
    import safetensors.torch

    work.mkdir(parents=True, exist_ok=True)
    print(f"{'case':12} {'batch':>5}  {'score ours':>10} {'theirs':>8} {'ratio':>6}  {'gradient ours':>13} {'theirs':>8} {'ratio':>6}  difference")
    for case in cases:
        safetensors.torch.save_file({"images": images(case)}, work / f"{case}.safetensors")
        rounds = []
        for _ in range(ROUNDS):
            reply = subprocess.run([sys.executable, __file__, "theirs", case, str(work)], capture_output=True, text=True)
            if reply.returncode:
                sys.exit(reply.stderr)
            rounds.append((ours(binary, case, work), json.loads(reply.stdout.splitlines()[-1])))
        middle = lambda side, what: statistics.median(r[side][what] for r in rounds)
        a, b, c, d = middle(0, "score"), middle(1, "score"), middle(0, "gradient"), middle(1, "gradient")
        apart = max(abs(p - q) for p, q in zip(rounds[0][0]["values"], rounds[0][1]["values"]))
        print(f"{case:12} {CASES[case][0]:5}  {a:9.3f}s {b:7.3f}s {a / b:6.2f}  {c:12.3f}s {d:7.3f}s {c / d:6.2f}  {apart:.1e}", flush=True)


if __name__ == "__main__":
    main()
