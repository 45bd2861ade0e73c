"""Loads LoRA files that amscript wrote in diffusers, and compares velocities.

    pip install torch diffusers==0.42.1 transformers peft safetensors accelerate
    cargo run --release -- tests/interop/lora.rhai --out /tmp/interop
    python tests/interop/lora.py /tmp/interop

Run from the repository's root. The tiny FLUX.2 of tests/golden/flux2 is the base; its weights are random, so agreement says that
every name, row and scale is where diffusers expects it. Prints the largest difference of each, relative to the largest velocity.

TOLERANCE is what float32 allows. The time embedding takes cos and sin of angles up to 1000, and every angle is a product of rounded
numbers, right to half a place, 2^-24; torch's exp, by which it gets the frequencies, differs in the last place from one processor to
another. A relative change of all angles by d changes these velocities by 330 d (base) and 460 d (adapted) of the largest one, for d
from 1e-6 to 1e-5, so that half a place is worth 2.7e-5: 1e-5 was below that, and an Intel processor gave 1.7e-5. An adapter that is
misplaced, transposed or scaled wrongly shows by a share of the first line that is printed, which is 1.0.
"""

import sys
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

GOLDEN = "tests/golden/flux2"
TOLERANCE = 3e-5


def velocity(transformer, ours):
    """Ours at time t from noise to data is minus theirs at 1 - t, on packed tokens."""
    x = ours["x"]
    b, c, h, w = x.shape
    rows = torch.arange(h * w)
    zero = torch.zeros_like(rows)
    text = torch.arange(ours["embeddings"].shape[1])
    with torch.no_grad():
        out = transformer(
            hidden_states=x.flatten(2).transpose(1, 2),
            encoder_hidden_states=ours["embeddings"],
            timestep=1 - ours["t"],
            img_ids=torch.stack([zero, rows // w, rows % w, zero], 1).expand(b, -1, -1),
            txt_ids=torch.stack([0 * text, 0 * text, 0 * text, text], 1).expand(b, -1, -1),
            guidance=None,
            return_dict=False,
        )[0]
    return -out.transpose(1, 2).reshape(b, c, h, w)


def main(folder):
    ours = load_file(folder / "velocity.safetensors")
    change = (ours["tuned"] - ours["base"]).abs().max() / ours["base"].abs().max()
    print(f"the adapters change the velocity by {change:.2g} of its largest value")
    worst = 0.0

    def compare(name, transformer, expected):
        nonlocal worst
        error = ((velocity(transformer, ours) - expected).abs().max() / expected.abs().max()).item()
        adapted = sum(isinstance(module, LoraLayer) for module in transformer.modules())
        worst = max(worst, error)
        print(f"{name}: {adapted} adapted modules, largest relative difference {error:.2e}")

    for form in ["diffusers", "kohya"]:
        transformer = Flux2Transformer2DModel.from_pretrained(GOLDEN, subfolder="transformer")
        if form == "diffusers":
            compare("base", transformer, ours["base"])
        scheduler = FlowMatchEulerDiscreteScheduler()
        pipeline = Flux2KleinPipeline(scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=transformer)
        pipeline.load_lora_weights(str(folder), weight_name=f"{form}.safetensors")
        compare(form, transformer, ours["tuned"])
    merged = Flux2Transformer2DModel.from_pretrained(folder / "merged", subfolder="transformer")
    compare("merged", merged, ours["tuned"])
    if worst > TOLERANCE:
        sys.exit(f"expected differences below {TOLERANCE}, got {worst:.2e}")


main(Path(sys.argv[1]))
