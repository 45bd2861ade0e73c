//! What the flow models cost, in closed form from their sizes; see [`crate::nn::cost`].

use super::codec::vae;
use super::flux2::network as flux2;
use super::qwen3;
use super::sit::network as sit;
use crate::nn::cost::{Cost, Ops, product};
use crate::tensor::op::{CACHED, WIDE};

/// A flow at work on one sample.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// One forward of its network.
    pub network: Cost,
    /// Whether the network's blocks run again in the backward.
    pub recompute: bool,
    /// Forwards that one velocity takes; two with guidance.
    pub passes: f64,
    pub decode: Cost,
    /// Operations that encode one prompt.
    pub encode: f64,
    /// Bytes of one prompt's embeddings.
    pub prompt: f64,
}

/// The FLUX.2 transformer on `text` prompt tokens and `image` latents.
pub fn flux2(config: &flux2::Config, text: usize, image: usize, ops: Ops) -> Cost {
    let (text, image, d) = (text as f64, image as f64, config.width() as f64);
    let (tokens, ratio, own) = (text + image, config.mlp_ratio, ops.own());
    let (double, single) = (config.num_layers as f64, config.num_single_layers as f64);
    // q, k, v, out, both halves of the gated MLP and its way back, in either kind of block
    let block = product(tokens, d, d) * (4.0 + 3.0 * ratio);
    let scores = 4.0 * tokens * tokens * d;
    let ends = product(text, config.joint_attention_dim as f64, d) + 2.0 * product(image, config.in_channels as f64, d);
    let vector =
        product(1.0, d, d) * (2.0 * 6.0 + 3.0 + 2.0 + 1.0) + product(1.0, config.timestep_guidance_channels as f64, d);
    // Towards the latents nothing flows through the prompt's embedding, nor through its q, k, v in the first block.
    let unused = if double > 0.0 { product(text, d, d) * 3.0 } else { 0.0 };
    let rows = tokens * d;
    let attended = 3.0 * ops.wide() + 5.0 * own; // q, k, v, normalised, turned, attended
    let mlp = 3.0 * ratio * own;
    let double_kept = rows * (2.0 * ops.wide() + 8.0 * own + attended + mlp);
    let single_kept = rows * (ops.wide() + (3.0 + ratio) * own + attended + mlp);
    let (forward, bounds) = ((double + single) * (block + scores) + ends + vector, rows * own);
    Cost {
        forward,
        vjp: (double + single) * (block + 2.0 * scores) - unused + 2.0 * product(image, config.in_channels as f64, d),
        kept: double * double_kept + single * single_kept + bounds,
        outline: (double + single + 1.0) * bounds,
        block: double_kept.max(single_kept),
        scratch: rows * (2.0 * ratio + 2.0) * own,
    }
}

/// The SiT transformer on one image's latents.
pub fn sit(config: &sit::Config, ops: Ops) -> Cost {
    let (d, depth, ratio, own) = (config.hidden_size as f64, config.depth as f64, config.mlp_ratio, ops.own());
    let tokens = (config.input_size / config.patch_size).pow(2) as f64;
    let patch = (config.in_channels * config.patch_size.pow(2)) as f64;
    let block = product(tokens, d, d) * (4.0 + 2.0 * ratio);
    let (scores, rows) = (4.0 * tokens * tokens * d, tokens * d);
    let vector = product(1.0, d, d) * (6.0 * depth + 2.0 + 1.0) + product(1.0, 256.0, d);
    let ends = 2.0 * product(tokens, patch, d);
    let kept = rows * (3.0 * ops.wide() + (7.0 + 2.0 * ratio) * own);
    Cost {
        forward: depth * (block + scores) + ends + vector,
        vjp: depth * (block + 2.0 * scores) + ends,
        kept: depth * kept + rows * own,
        outline: (depth + 1.0) * rows * own,
        block: kept,
        scratch: rows * ratio * own,
    }
}

/// Qwen3 on `tokens` of a prompt, `layers` of it; its attention is causal, so half of the scores count.
pub fn qwen3(config: &qwen3::Config, layers: usize, tokens: usize) -> f64 {
    let (d, tokens) = (config.hidden_size as f64, tokens as f64);
    let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let linear = product(tokens, d, 2.0 * q as f64 + 2.0 * kv as f64 + 3.0 * config.intermediate_size as f64);
    layers as f64 * (linear + 2.0 * tokens * tokens * q as f64)
}

/// An autoencoder's decoder from raw latents `[latent_channels, h, w]` to an image.
pub fn decoder(config: &vae::Config, h: usize, w: usize, ops: Ops) -> Cost {
    let (mut walk, mut pixels) = (Convolutions { ops, cost: Cost::default(), inside: 0.0 }, (h * w) as f64);
    let widths: Vec<f64> = config.block_out_channels.iter().rev().map(|c| *c as f64).collect();
    let (raw, top) = (config.latent_channels as f64, widths.first().copied().unwrap_or(1.0));
    walk.conv(raw, raw, 1.0, pixels);
    walk.conv(raw, top, 9.0, pixels);
    walk.resnet(top, top, pixels);
    let scores = 4.0 * pixels * pixels * top;
    walk.cost.forward += product(pixels, top, top) * 4.0 + scores;
    walk.cost.vjp += product(pixels, top, top) * 4.0 + 2.0 * scores;
    walk.cost.kept += pixels * top * (2.0 * ops.wide() + 7.0 * ops.own());
    walk.resnet(top, top, pixels);
    let mut inner = top;
    for (i, outer) in widths.iter().enumerate() {
        for _ in 0..config.layers_per_block + 1 {
            walk.resnet(inner, *outer, pixels);
            inner = *outer;
        }
        if i + 1 < widths.len() {
            pixels *= 4.0;
            // The CPU doubles the image and convolves it in one.
            walk.cost.kept += if ops.cpu { 0.0 } else { pixels * inner * ops.own() };
            walk.conv(inner, inner, if ops.cpu { 4.0 } else { 9.0 }, pixels);
        }
    }
    walk.cost.kept += pixels * inner * ops.wide();
    walk.conv(inner, 3.0, 9.0, pixels);
    walk.cost.outline = walk.cost.kept - walk.inside;
    walk.cost
}

/// Adds up convolutions.
struct Convolutions {
    ops: Ops,
    cost: Cost,
    /// What resnets keep beside their result.
    inside: f64,
}

impl Convolutions {
    /// A convolution with a kernel of `taps` numbers per channel; patches of a few lines are unrolled at a time for the product.
    fn conv(&mut self, inner: f64, outer: f64, taps: f64, pixels: f64) {
        let operations = product(pixels, inner * taps, outer);
        let own = self.ops.own();
        let unrolled = if taps > 1.0 { pixels * inner * taps } else { 0.0 };
        let at_once = if self.ops.cpu { (CACHED as f64).max(inner * taps * WIDE as f64) } else { f64::INFINITY };
        let scratch = own * unrolled.min(at_once);
        self.cost += Cost {
            forward: operations,
            vjp: operations,
            kept: pixels * outer * own,
            block: pixels * (inner + outer) * own,
            scratch,
            ..Cost::default()
        };
    }

    /// Two norms, nonlinearities and convolutions, and a residual.
    fn resnet(&mut self, inner: f64, outer: f64, pixels: f64) {
        let (before, passed) = (self.cost.kept, self.ops.wide());
        self.conv(inner, outer, 9.0, pixels);
        self.conv(outer, outer, 9.0, pixels);
        if inner != outer {
            self.conv(inner, outer, 1.0, pixels);
        }
        self.cost.kept += pixels * ((inner + outer) * passed + outer * self.ops.own());
        let own = self.cost.kept - before;
        self.cost.block = self.cost.block.max(own);
        self.inside += own - pixels * outer * self.ops.own();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::cost::vit;
    use crate::nn::vit::{Activation, Sizes};
    use crate::tensor::DType;
    use serde_json::json;

    const F32: Ops = Ops { dtype: DType::F32, cpu: true };

    fn giga(flops: f64) -> f64 {
        (flops / 1e9).round()
    }

    /// The published sizes and their operations as counted by PyTorch's FLOP counter.
    #[test]
    fn flux2_klein_4b_costs_what_was_counted() {
        let config: flux2::Config = serde_json::from_value(json!({
            "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
            "attention_head_dim": 128, "joint_attention_dim": 7680, "mlp_ratio": 3.0, "axes_dims_rope": [32, 32, 32, 32]
        }))
        .unwrap();
        let counted = |text, image| giga(flux2(&config, text, image, F32).forward);
        assert_eq!(
            [counted(512, 256), counted(256, 256), counted(128, 256), counted(64, 256)],
            [4917.0, 3234.0, 2408.0, 1998.0]
        );
        assert_eq!([counted(512, 1024), counted(512, 4096)], [10173.0, 34820.0]);
        assert_eq!(giga(flux2(&config, 512, 256, F32).vjp), 5045.0);
        assert_eq!(giga(flux2(&config, 128, 256, F32).vjp), 2439.0);
        // 4.5 MiB at each of the 25 block boundaries in half precision
        let half = Ops { dtype: DType::BF16, cpu: false };
        assert_eq!(flux2(&config, 512, 256, half).outline / 26.0, 4.5 * 1024.0 * 1024.0);
        // the same nodes as in f32 on the CPU
        assert_eq!(flux2(&config, 512, 256, half).kept * 2.0, flux2(&config, 512, 256, F32).kept);
    }

    #[test]
    fn the_autoencoder_of_flux2_costs_what_was_counted() {
        let config: vae::Config = serde_json::from_value(json!({
            "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 32, "norm_num_groups": 32
        }))
        .unwrap();
        let cost = decoder(&config, 32, 32, Ops { cpu: false, ..F32 });
        assert_eq!((giga(cost.forward), giga(cost.vjp)), (622.0, 625.0));
    }

    #[test]
    fn sit_xl_and_the_towers_cost_what_was_counted() {
        let config: sit::Config = serde_json::from_value(json!({
            "depth": 28, "hidden_size": 1152, "num_heads": 16, "patch_size": 2, "input_size": 32, "num_classes": 1000
        }))
        .unwrap();
        assert_eq!(giga(sit(&config, F32).forward), 237.0);
        let activation = Activation::Gelu;
        let vision = Sizes { width: 1280, layers: 32, heads: 16, hidden: 5120, eps: 1e-5, activation };
        assert!((giga(vit(224, 14, &vision, F32).forward) - 335.0).abs() < 3.0);
        let config: qwen3::Config = serde_json::from_value(json!({
            "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e6
        }))
        .unwrap();
        assert!((qwen3(&config, 27, 512) / 1e12 - 2.85).abs() < 0.05);
    }
}
