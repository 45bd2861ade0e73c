//! Updates of a FLUX.2-Klein-4B with random weights made on the card: seconds, utilisation and peak memory as one line of JSON.
//!
//! `cargo bench --features cuda --bench gpu -- [--size tiny] [--methods AM-1,AM-3] [--batch 16] [--steps 20] [--repeats 3] [--profile 1]
//! [--pixels 256] [--plan]`; the device is that of `AMSCRIPT_DEVICE`. `benches/peers/gpu.py` does the same in PyTorch; `benches/gpu/run.sh` asks for all.
#![allow(clippy::print_stdout)]

use amscript::Result;
use amscript::align::{AdjointMatching, Batch, Draft, MethodState, Refl, RewardCost, Truncation, update};
use amscript::flow::{Condition, Velocity, uniform};
use amscript::model::codec::latents::Latents;
use amscript::model::codec::vae;
use amscript::model::flux2::network::{Flux2Config, Transformer};
use amscript::nn::weights::Weights;
use amscript::optim::{AdamW, OptimizerOptions, Params, StepOptions};
use amscript::tensor::meta::{OpTotals, Trace};
use amscript::tensor::{Array, DType, Device, Rng, Tensor, op, place};
use amscript_base::context::Context;
use amscript_run::roofline::{Bound, CARDS};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// A network and its way without a graph to its adapters.
struct Field {
    network: Transformer,
    frozen: Option<Arc<dyn Velocity>>,
}

impl Velocity for Field {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        let text = condition.need(Condition::EMBEDDINGS)?;
        self.network.velocity(x, t, text)
    }

    fn frozen(&self) -> Result<Option<Arc<dyn Velocity>>> {
        Ok(self.frozen.clone())
    }
}

struct Sizes {
    transformer: Flux2Config,
    autoencoder: vae::AutoencoderConfig,
    /// Latents a side, prompt tokens.
    side: usize,
    tokens: usize,
}

fn sizes(name: &str) -> Sizes {
    let (width, double, single, features, channels, widths, resnets, side, tokens) = match name {
        "klein-4b" => (3072, 5, 20, 7680, 32, json!([128, 256, 512, 512]), 2, 16, 512),
        "tiny" => (64, 1, 2, 48, 4, json!([8, 8, 16, 16]), 1, 2, 8),
        other => panic!("--size: expected klein-4b or tiny, got {other}"),
    };
    let head = if name == "tiny" { 16 } else { 128 };
    let transformer = json!({
        "in_channels": 4 * channels, "num_layers": double, "num_single_layers": single, "num_attention_heads": width / head,
        "attention_head_dim": head, "joint_attention_dim": features, "mlp_ratio": 3.0, "axes_dims_rope": [head / 4, head / 4, head / 4, head / 4],
    });
    let autoencoder = json!({
        "block_out_channels": widths, "layers_per_block": resnets, "latent_channels": channels,
        "norm_num_groups": if name == "tiny" { 4 } else { 32 },
    });
    Sizes {
        transformer: serde_json::from_value(transformer).expect("a config"),
        autoencoder: serde_json::from_value(autoencoder).expect("a config"),
        side,
        tokens,
    }
}

/// Normal numbers made on the device.
fn normal(shape: &[usize], deviation: f64, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::from(Array::randn(0f32, deviation as f32, shape, device)?).to_dtype(dtype)
}

/// Random weights made where they are used: normal matrices, vectors of ones.
fn drawn(asked: BTreeMap<String, Vec<usize>>, deviation: f64, dtype: DType, device: &Device) -> Result<Weights> {
    let draw = |(name, shape): (String, Vec<usize>)| {
        let tensor = match shape.len() {
            1 if name.ends_with("bias") || name.ends_with("mean") => Tensor::zeros(shape, dtype, device)?,
            1 => Tensor::ones(shape, dtype, device)?,
            _ => normal(&shape, deviation, dtype, device)?,
        };
        Ok((name, tensor))
    };
    Ok(Weights::from_tensors("random", asked.into_iter().map(draw).collect::<Result<_>>()?))
}

/// Everything an update starts from.
struct Bench {
    base: Field,
    policy: Field,
    optimizer: AdamW,
    batch: Batch,
    steps: usize,
}

impl Bench {
    /// With `trace`, of shapes alone; with `again`, blocks run again in the backward instead of keeping their graph.
    fn new(
        sizes: &Sizes,
        batch: usize,
        steps: usize,
        device: &Device,
        trace: Option<&Arc<Trace>>,
        again: bool,
    ) -> Result<Self> {
        let dtype = if device.is_cpu() && trace.is_none_or(|trace| !trace.fused()) { DType::F32 } else { DType::BF16 };
        let made = |dtype: DType, deviation: f64, build: &dyn Fn(&Weights) -> Result<()>| -> Result<Weights> {
            if let Some(trace) = trace {
                return Ok(Weights::meta(dtype, trace));
            }
            let meta = Weights::meta(dtype, &Trace::new(false));
            build(&meta)?;
            drawn(meta.asked(), deviation, dtype, device)
        };
        let numbers = |shape: &[usize], dtype: DType| match trace {
            Some(trace) => Tensor::meta(shape, dtype, trace),
            None => normal(shape, 1.0, dtype, device),
        };
        let weights = made(dtype, (sizes.transformer.width() as f64).powf(-0.5), &|w| {
            Transformer::new(&sizes.transformer, w, true).map(|_| ())
        })?;
        let targets = ["to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", "attn.to_out"];
        let chosen = |module: &str| module.contains("blocks") && targets.iter().any(|end| module.ends_with(end));
        let base = Field { network: Transformer::new(&sizes.transformer, &weights, again)?, frozen: None };
        let adapted = weights.with_lora(chosen, 64, 1.0, &Rng::new(1))?;
        let field = |weights: &Weights, frozen| -> Result<Field> {
            Ok(Field { network: Transformer::new(&sizes.transformer, weights, again)?, frozen })
        };
        let frozen: Arc<dyn Velocity> = Arc::new(field(&adapted.frozen()?, None)?);
        let options = OptimizerOptions { check: false, ..Default::default() };
        let optimizer = AdamW::new(Params::new(adapted.params())?, options)?;
        let decoder = made(DType::F32, 0.05, &|w| Latents::new(&sizes.autoencoder, w).map(|_| ()))?;
        let latents = Latents::new(&sizes.autoencoder, &decoder)?.checkpointed(again);
        let brightness = move |x: &Tensor| {
            let images = op::clamp_through(&latents.decode(x)?, 0.0, 1.0)?;
            images.to_dtype(DType::F32)?.flatten_from(1)?.mean(1)
        };
        let text = [batch, sizes.tokens, sizes.transformer.joint_attention_dim];
        let condition = Condition::default().with(Condition::EMBEDDINGS, numbers(&text, dtype)?);
        let latent = [batch, sizes.transformer.in_channels, sizes.side, sizes.side];
        Ok(Self {
            base,
            policy: field(&adapted, Some(frozen))?,
            optimizer,
            batch: Batch::new(&numbers(&latent, DType::F32)?, &condition, RewardCost::new(brightness, 100.0)?),
            steps,
        })
    }

    /// One update; `turn` is the step that ReFL takes.
    fn update(&mut self, method: &str, turn: usize) -> Result<()> {
        let grid = uniform(self.steps)?;
        let truncate = |k: usize| Truncation::Last(k.min(self.steps));
        let loss = match method {
            "AM-1" | "AM-3" | "AM-Full" => {
                let k = match method {
                    "AM-1" => 1,
                    "AM-3" => 3,
                    _ => self.steps,
                };
                let method = AdjointMatching { truncate: truncate(k), ..AdjointMatching::new(grid) };
                update(&method, &self.policy, &self.base, &self.batch, &mut MethodState::default())?.loss()?
            }
            "DRaFT-1" => {
                update(&Draft::new(grid), &self.policy, &self.base, &self.batch, &mut MethodState::default())?.loss()?
            }
            "ReFL-5" => {
                let m = self.steps - 1 - turn % self.steps.min(5);
                Refl::new(grid).at(&self.policy, &self.batch, m)?.loss()?
            }
            other => panic!("--methods: expected AM-1, AM-3, AM-Full, DRaFT-1 or ReFL-5, got {other}"),
        };
        match loss.trace() {
            Some(_) => self.optimizer.gradients(&loss).map(|_| ()),
            None => self.optimizer.step(&loss, &StepOptions { clip: Some(1.0), ..StepOptions::default() }).map(|_| ()),
        }
    }
}

/// An update on tensors without numbers: its operations, the most bytes held, its ops.
fn planned(method: &str, sizes: &Sizes, batch: usize, steps: usize, again: bool) -> Result<Arc<Trace>> {
    let trace = Trace::new(true);
    Bench::new(sizes, batch, steps, &Device::Cpu, Some(&trace), again)?.update(method, 0)?;
    Ok(trace)
}

/// Memory and, as the roofline has them, milliseconds on each card; then the ops that take more than a hundredth of the first.
fn print_plan(method: &str, trace: &Trace) {
    let ops = trace.ops();
    let all = CARDS.each_ref().map(|card| card.seconds(&ops));
    let row = |name: &str, op: OpTotals, seconds: [String; 2]| {
        println!("| {name} | {} | {:.2} | {:.1} | {} |", op.calls, op.work / 1e12, op.moved / 1e9, seconds.join(" | "));
    };
    println!(
        "\n{method}: {:.1} GB held\n\n| | calls | TFLOP | GB moved | H200, ms | L40S, ms |",
        trace.peak() as f64 / 1e9
    );
    println!("|---|---|---|---|---|---|");
    let mut sorted: Vec<_> =
        ops.iter().map(|(key, op)| (*key, *op, CARDS.each_ref().map(|c| c.bound(*key, *op)))).collect();
    sorted.sort_by(|a, b| b.2[0].seconds.total_cmp(&a.2[0].seconds));
    for (key, op, bounds) in sorted.iter().filter(|(_, _, bounds)| bounds[0].seconds > 0.01 * all[0]) {
        let text = |b: &Bound| format!("{:.1}{}", 1e3 * b.seconds, if b.by_memory { "*" } else { "" });
        row(&format!("{} {}", key.0, key.1), *op, bounds.each_ref().map(text));
    }
    let sum = ops.values().fold(OpTotals::default(), |a, b| OpTotals {
        calls: a.calls + b.calls,
        work: a.work + b.work,
        moved: a.moved + b.moved,
    });
    row("all", sum, all.map(|seconds| format!("{:.0}", 1e3 * seconds)));
}

/// Seconds of one update by op, forward and backward, the longest first.
fn profiled(bench: &mut Bench, method: &str, device: &Device) -> Result<Value> {
    let context = Context::current();
    context.profile.start(place::wait(device));
    bench.update(method, 0)?;
    let found = context.profile.finish().unwrap_or_default();
    let mut ops: Vec<_> =
        found.ops.into_iter().map(|(name, both)| (name, both.map(|t| t.time.as_secs_f64()))).collect();
    ops.sort_by(|a, b| b.1.iter().sum::<f64>().total_cmp(&a.1.iter().sum()));
    let phases = found.phases.into_iter().map(|(name, t)| (name, t.time.as_secs_f64()));
    Ok(json!({ "phases": phases.collect::<BTreeMap<_, _>>(), "ops": ops.into_iter().take(12).collect::<Vec<_>>() }))
}

/// Waits for the device, and gives its peak memory.
fn finished(device: &Device) -> Result<Option<u64>> {
    device.synchronize()?;
    place::peak_memory(device)
}

/// Operations per second of a large product in the type that networks compute in.
fn matmul_rate(device: &Device, size: &str) -> Result<f64> {
    let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    let n = if size == "tiny" { 512 } else { 8192 };
    let x = normal(&[n, n], 1.0, dtype, device)?;
    let run = |times: usize| -> Result<f64> {
        let begun = Instant::now();
        for _ in 0..times {
            op::linear(&x, &x, None, None)?;
        }
        finished(device)?;
        Ok(begun.elapsed().as_secs_f64())
    };
    run(3)?;
    Ok(20.0 * 2.0 * (n as f64).powi(3) / run(20)?)
}

/// Mean seconds of an update, the first left out, and peak memory; with no repeats those of the first.
fn timed(bench: &mut Bench, method: &str, repeats: usize, device: &Device) -> Result<(f64, Option<u64>)> {
    let begun = Instant::now();
    bench.update(method, 0)?;
    let peak = finished(device)?;
    if repeats == 0 {
        return Ok((begun.elapsed().as_secs_f64(), peak));
    }
    let begun = Instant::now();
    for turn in 0..repeats {
        bench.update(method, turn)?;
    }
    let peak = finished(device)?;
    Ok((begun.elapsed().as_secs_f64() / repeats as f64, peak))
}

fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str, usual: &str| {
        let at = given.iter().position(|a| a == name);
        at.and_then(|i| given.get(i + 1)).cloned().unwrap_or_else(|| usual.to_string())
    };
    let number = |name: &str, usual: &str| option(name, usual).parse::<usize>().expect("a number");
    let device = place::from_environment()?;
    let size = option("--size", if device.is_cpu() { "tiny" } else { "klein-4b" });
    let (batch, steps, repeats) = (number("--batch", "16"), number("--steps", "20"), number("--repeats", "3"));
    let mut sizes = sizes(&size);
    sizes.side = option("--pixels", &(16 * sizes.side).to_string()).parse::<usize>().expect("a number") / 16;
    let methods = option("--methods", "AM-1,AM-3,DRaFT-1,ReFL-5,AM-Full");
    if given.iter().any(|a| a == "--plan") {
        for method in methods.split(',') {
            print_plan(method, &*planned(method, &sizes, batch, steps, true)?);
        }
        return Ok(());
    }
    let rate = matmul_rate(&device, &size)?;
    let begun = Instant::now();
    let mut bench = Bench::new(&sizes, batch, steps, &device, None, true)?;
    let weights = finished(&device)?;
    let made = begun.elapsed().as_secs_f64();
    eprintln!("made in {made:.1} s, products at {:.1} TFLOP/s", rate / 1e12);
    let mut found = serde_json::Map::new();
    for method in methods.split(',') {
        let repeats = if method == "ReFL-5" { repeats.next_multiple_of(5) } else { repeats };
        let plan = planned(method, &sizes, batch, steps, true)?;
        // What runs again is no progress.
        let (flops, bound) =
            (planned(method, &sizes, batch, steps, false)?.work() as f64, CARDS[0].seconds(&plan.ops()));
        // One that fails, for want of memory perhaps, leaves the others their figures.
        let figures = match timed(&mut bench, method, repeats, &device) {
            Ok((seconds, peak)) => json!({
                "seconds": seconds, "roofline_seconds": bound, "tflop": flops / 1e12, "utilisation": flops / seconds / rate,
                "peak_bytes": peak, "planned_bytes": plan.peak(),
                "profile": if number("--profile", "0") == 0 { Value::Null } else { profiled(&mut bench, method, &device)? },
            }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        eprintln!("{method}: {figures}");
        found.insert(method.into(), figures);
    }
    println!(
        "{}",
        json!({
            "side": "amscript", "device": place::name(&device), "size": size, "batch": batch, "steps": steps,
            "matmul_tflops": rate / 1e12, "weights_bytes": weights, "made_in": made, "methods": found,
        })
    );
    Ok(())
}
