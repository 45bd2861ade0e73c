//! LoRA files, strength and merging on the golden FLUX.2; the case `flux2_lora` is what diffusers and peft make of them.

use amscript::flow::{Condition, Velocity};
use amscript::model::adapter::Targets;
use amscript::model::flux2::names::{alias, block_linear, lora_target};
use amscript::model::flux2::network::Transformer;
use amscript::model::{Flow, ModelOptions, open};
use amscript::nn::archive;
use amscript::nn::lora::Form;
use amscript::nn::module::Module;
use amscript::nn::source::Sources;
use amscript::nn::weights::Weights;
use amscript::tensor::grad::{gradients, vjp};
use amscript::tensor::{DType, Device, Rng, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

struct Case {
    base: Flow,
    golden: HashMap<String, Tensor>,
}

fn golden(name: &str) -> PathBuf {
    Path::new("tests/golden/flux2_lora").join(name)
}

fn top(x: &Tensor) -> f64 {
    x.constant().abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn error(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.dims(), expected.dims());
    top(&(got.constant() - expected.constant()).unwrap()) / top(expected)
}

impl Case {
    fn new() -> Self {
        Self::with(&ModelOptions::default())
    }

    fn with(choices: &ModelOptions) -> Self {
        let base = open("tests/golden/flux2", &Sources::default(), choices, &Device::Cpu).unwrap();
        let golden = amscript::tensor::file::load(golden("expected.safetensors"), &Device::Cpu).unwrap();
        Self { base, golden }
    }

    fn condition(&self) -> Condition {
        Condition::default().with(Condition::EMBEDDINGS, self.golden["in.text"].clone())
    }

    /// `[batch, channels, 4, 6]` of the packed golden latents.
    fn x(&self) -> Tensor {
        let packed = &self.golden["in.x_packed"];
        let (b, _, c) = packed.dims3().unwrap();
        packed.transpose(1, 2).unwrap().contiguous().unwrap().reshape((b, c, 4, 6)).unwrap()
    }

    /// Times from noise to data, a different one for each sample; in f64, so that turning it round costs no digits.
    fn t(&self) -> Tensor {
        self.golden["in.t"].to_dtype(DType::F64).unwrap().affine(-1.0, 1.0).unwrap()
    }

    fn velocity(&self, flow: &Flow) -> Tensor {
        flow.velocity(&self.x(), &self.t(), &self.condition()).unwrap().constant()
    }

    /// In the golden's sign and token order.
    fn packed(&self, flow: &Flow) -> Tensor {
        self.velocity(flow).neg().unwrap().flatten_from(2).unwrap().transpose(1, 2).unwrap().contiguous().unwrap()
    }

    fn tuned(&self, rank: usize, targets: &Targets) -> Flow {
        tuned(&self.base, rank, targets)
    }

    /// What loading these tensors gives: the flow, or the error without the file's name.
    fn load(&self, tensors: &[(&str, Tensor)], metadata: &[(&str, &str)]) -> Result<Flow, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<BTreeMap<_, _>>();
        archive::write(&path, tensors.iter().map(|(name, x)| (*name, x)), &metadata).unwrap();
        let loaded = self.base.load_lora(&path, false);
        loaded.map_err(|e| e.to_string().replace(&path.display().to_string(), "F"))
    }
}

/// Adapters on `targets` with every factor drawn.
fn tuned(base: &Flow, rank: usize, targets: &Targets) -> Flow {
    let (rng, tuned) = (Rng::new(3), base.lora(rank, 0.7, targets, &Rng::new(3)).unwrap());
    for (name, tensor) in tuned.params() {
        let noise = rng.split(&name).normal(tensor.dims(), tensor.dtype(), &Device::Cpu).unwrap();
        tensor.set(&(noise * 0.2).unwrap()).unwrap();
    }
    tuned
}

fn normal(name: &str, shape: &[usize]) -> Tensor {
    Rng::new(5).split(name).normal(shape, DType::F32, &Device::Cpu).unwrap()
}

fn number(value: f32) -> Tensor {
    Tensor::new(value, &Device::Cpu).unwrap()
}

const FILES: [(&str, &str); 3] = [
    ("pytorch_lora_weights.safetensors", "out.velocity_packed"),
    ("lora_alpha.safetensors", "out.velocity_alpha_packed"),
    ("lora_bfl.safetensors", "out.velocity_bfl_packed"),
];

/// The reference rounds the sinusoids of time to f32; the last bit of an exponential there is 1e-5 here.
const TOLERANCE: f64 = 3e-5;

#[test]
fn golden_files_give_the_golden_velocity() {
    let case = Case::new();
    for (file, expected) in FILES {
        let flow = case.base.load_lora(&golden(file), false).unwrap();
        assert!(flow.params().is_empty());
        let error = error(&case.packed(&flow), &case.golden[expected]);
        println!("{file}: {error:.1e}");
        assert!(error < TOLERANCE, "{file}: {error:e}");
    }
    let halved = case.base.load_lora(&golden(FILES[0].0), false).unwrap().strength(0.5).unwrap();
    assert!(error(&case.packed(&halved), &case.golden["out.velocity_alpha_packed"]) < TOLERANCE);
}

/// Weights from BFL's file, held in bf16 (which they are), and computed with in bf16, where diffusers itself is off by 0.031, 0.038
/// and 0.076 for the three files.
#[test]
fn adapters_go_with_every_form_of_the_base() {
    let single = Some("tests/golden/flux2/flux2_bfl.safetensors".into());
    let bf16 = Some(DType::BF16);
    for (choices, tolerance) in [
        (ModelOptions { weights: single.clone(), ..ModelOptions::default() }, TOLERANCE),
        (ModelOptions { weights: single.clone(), dtype: bf16, ..ModelOptions::default() }, TOLERANCE),
        (ModelOptions { weights: single.clone(), dtype: Some(DType::F64), ..ModelOptions::default() }, TOLERANCE),
        (ModelOptions { weights: single, dtype: bf16, compute: bf16, ..ModelOptions::default() }, 0.08),
    ] {
        let case = Case::with(&choices);
        for (file, expected) in FILES {
            let flow = case.base.load_lora(&golden(file), true).unwrap();
            let dtype = if choices.dtype == Some(DType::F64) { DType::F64 } else { DType::F32 };
            assert!(flow.params().iter().all(|(_, tensor)| tensor.dtype() == dtype));
            let error = error(&case.packed(&flow), &case.golden[expected]);
            assert!(error < tolerance, "{file}: {error:e}");
        }
    }
}

/// 16.7 and 24.1 million at rank 16, as people count them.
#[test]
fn parameters_of_the_published_size() {
    let config = serde_json::json!({
        "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "attention_head_dim": 128,
        "joint_attention_dim": 7680, "mlp_ratio": 3.0, "axes_dims_rope": [32, 32, 32, 32],
    });
    let meta = Weights::meta(DType::BF16, &amscript::tensor::meta::Trace::new(false));
    Transformer::new(&serde_json::from_value(config).unwrap(), &meta, true).unwrap();
    let count = |chosen: fn(&str) -> bool| -> usize {
        meta.linears().iter().filter(|(name, _)| chosen(name)).map(|(_, [out, inner])| 16 * (out + inner)).sum()
    };
    assert_eq!(count(lora_target), 16_711_680);
    assert_eq!(count(block_linear), 24_084_480);
    for module in meta.linears().keys() {
        assert!(alias(module).is_some(), "{module} has a name in BFL's layout");
    }
}

#[test]
fn golden_products() {
    let case = Case::new();
    let params: HashMap<_, _> = case.base.load_lora(&golden(FILES[0].0), true).unwrap().params().into_iter().collect();
    let deltas: Vec<_> = case.golden.iter().filter_map(|(k, v)| Some((k.strip_prefix("out.delta.")?, v))).collect();
    assert_eq!((deltas.len(), params.len()), (3, 6));
    for (module, delta) in deltas {
        let factor = |side: &str| params[&format!("{module}.lora_{side}.weight")].constant();
        assert!(error(&factor("B").matmul(&factor("A")).unwrap(), delta) < 1e-5, "{module}");
    }
}

#[test]
fn what_is_saved_reads_back_in_either_form() {
    let case = Case::with(&ModelOptions { dtype: Some(DType::F64), ..ModelOptions::default() });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let all = Targets::Named(
        case.base
            .lora(1, 1.0, &Targets::Blocks, &Rng::new(0))
            .unwrap()
            .params()
            .iter()
            .filter_map(|(name, _)| name.strip_suffix(".lora_A.weight").map(String::from))
            .chain(["norm_out.linear", "x_embedder", "double_stream_modulation_txt.linear"].map(String::from))
            .collect(),
    );
    let mut flows =
        vec![case.tuned(2, &Targets::Usual), case.tuned(3, &all), case.tuned(2, &Targets::Named(vec!["to_k".into()]))];
    flows.extend(FILES.map(|(file, _)| case.base.load_lora(&golden(file), false).unwrap()));
    for (i, flow) in flows.iter().enumerate() {
        assert!(error(&case.velocity(flow), &case.velocity(&case.base)) > 1e-2);
        for form in [Form::Diffusers, Form::Kohya] {
            flow.save_lora(&path, form, None).unwrap();
            let again = case.base.load_lora(&path, false).unwrap();
            let error = error(&case.velocity(&again), &case.velocity(flow));
            assert!(error < 2e-6, "flow {i}, {form:?}: {error:e}");
        }
        flow.save_lora(&path, Form::Diffusers, Some(DType::BF16)).unwrap();
        assert!(archive::Archive::open(&path).unwrap().entries().values().all(|e| e.dtype == DType::BF16));
        case.base.load_lora(&path, false).unwrap();
        let merged = flow.merge().unwrap();
        assert!(!merged.is_adapted());
        let error = error(&case.velocity(&merged), &case.velocity(flow));
        assert!(error < 1e-5, "flow {i}, merged: {error:e}");
    }
}

#[test]
fn names_of_other_programs() {
    let case = Case::new();
    let (a, b) = (normal("a", &[4, 48]), normal("b", &[48, 4]));
    let module = "transformer_blocks.1.attn.to_out.0";
    let pair = |stem: &str, down: &str, up: &str| {
        vec![(format!("{stem}.{down}.weight"), a.clone()), (format!("{stem}.{up}.weight"), b.clone())]
    };
    let load = |tensors: Vec<(String, Tensor)>, metadata: &[(&str, &str)]| {
        let tensors: Vec<_> = tensors.iter().map(|(name, x)| (name.as_str(), x.clone())).collect();
        case.velocity(&case.load(&tensors, metadata).unwrap())
    };
    let whole = load(pair(&format!("transformer.{module}"), "lora_A", "lora_B"), &[]);
    for (stem, down, up) in [
        (module, "lora_A", "lora_B"),
        ("base_model.model.transformer_blocks.1.attn.to_out.0", "lora_A", "lora_B"),
        ("base_model.model.double_blocks.1.img_attn.proj", "lora_A.default", "lora_B.default"),
        ("transformer.transformer_blocks.1.attn.to_out.0", "lora.down", "lora.up"),
        ("diffusion_model.double_blocks.1.img_attn.proj", "lora_A", "lora_B"),
        ("model.diffusion_model.double_blocks.1.img_attn.proj", "lora_down", "lora_up"),
        ("lora_unet_double_blocks_1_img_attn_proj", "lora_down", "lora_up"),
        ("lora_transformer_transformer_blocks_1_attn_to_out_0", "lora_down", "lora_up"),
        ("module.transformer_blocks.1.attn.to_out.0", "lora_A", "lora_B"),
        ("transformer._orig_mod.transformer_blocks.1.attn.to_out.0", "lora_A", "lora_B"),
        ("base_model.model._orig_mod.transformer_blocks.1.attn.to_out.0", "lora_A.policy", "lora_B.policy"),
        ("transformer_blocks.1._orig_mod.attn.to_out.0", "lora_A", "lora_B"),
        ("_fsdp_wrapped_module.transformer_blocks.1._checkpoint_wrapped_module.attn.to_out.0", "lora_A", "lora_B"),
        ("_forward_module.module.transformer_blocks.1.attn.to_out.0", "lora_A", "lora_B"),
        ("pipe.dit.transformer_blocks.1.attn.to_out.0", "lora_A.default", "lora_B.default"),
        ("lora_unet__orig_mod_transformer_blocks_1_attn_to_out_0", "lora_down", "lora_up"),
        ("lycoris_transformer_blocks_1_attn_to_out_0", "lora_down", "lora_up"),
        ("ema.transformer.transformer_blocks.1.attn.to_out.0", "lora_A", "lora_B"),
        ("pipeline.transformer.base_model.model.transformer_blocks.1.attn.to_out.0", "lora_A", "lora_B"),
        ("denoise_fn.double_blocks.1.img_attn.proj", "lora_A", "lora_B"),
    ] {
        let velocity = load(pair(stem, down, up), &[]);
        assert_eq!(error(&velocity, &whole), 0.0, "{stem}");
    }
    let half = (&b * 0.5).unwrap();
    let half =
        load(vec![(format!("{module}.lora_A.weight"), a.clone()), (format!("{module}.lora_B.weight"), half)], &[]);
    for stem in [module, "diffusion_model.double_blocks.1.img_attn.proj", "lora_unet_double_blocks_1_img_attn_proj"] {
        let mut tensors = pair(stem, "lora_down", "lora_up");
        tensors.push((format!("{stem}.alpha"), number(2.0)));
        assert!(error(&load(tensors, &[]), &half) < 1e-6, "{stem}");
    }
    for metadata in [
        r#"{"transformer.r": 4, "transformer.lora_alpha": 2}"#,
        r#"{"transformer.r": 4, "transformer.lora_alpha": 1, "transformer.use_rslora": true}"#,
        r#"{"lora_alpha": 2}"#,
        r#"{"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"to_q": 1, "attn.to_out.0": 2}}"#,
        r#"{"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"^transformer_blocks\\.1\\.attn\\.to_out\\.0": 2}}"#,
    ] {
        let velocity =
            load(pair(&format!("transformer.{module}"), "lora_A", "lora_B"), &[("lora_adapter_metadata", metadata)]);
        assert!(error(&velocity, &half) < 1e-6, "{metadata}");
    }
    for header in [
        ("lora_alpha", "2"),
        ("network_alpha", "2.0"),
        ("ss_network_alpha", " 2 "),
        ("alpha", "2"),
        ("network.alpha", "2"),
        ("lora_config", "{\"lora_alpha\": 2}"),
        ("training_config", "{\"lora_alpha\": 2}"),
    ] {
        let velocity = load(pair(module, "lora_A", "lora_B"), &[("ss_network_alpha", "None"), header]);
        assert!(error(&velocity, &half) < 1e-6, "{header:?}");
    }
    assert_eq!(error(&load(pair(module, "lora_A", "lora_B"), &[("ss_network_alpha", "None")]), &whole), 0.0);
    let odd: Vec<_> = pair(module, "lora_A", "lora_B");
    let odd: Vec<_> = odd.iter().map(|(name, x)| (name.as_str(), x.clone())).collect();
    for (value, word) in [
        ("[]", "lora_adapter_metadata: expected a JSON object, got another value"),
        (r#"{"lora_alpha": "8"}"#, "lora_adapter_metadata: `lora_alpha` must be a number, got \"8\""),
        (r#"{"lora_alpha": null}"#, "lora_adapter_metadata: `lora_alpha` must be a number, got null"),
        (r#"{"use_dora": 1}"#, "lora_adapter_metadata: `use_dora` must be true or false, got 1"),
    ] {
        let refusal = case.load(&odd, &[("lora_adapter_metadata", value)]).err().unwrap();
        assert!(refusal.ends_with(word), "{refusal}");
    }
    let refusal = case.load(&odd, &[("lora_alpha", "much")]).err().unwrap();
    assert_eq!(refusal, "F: its header's `lora_alpha` must be a number, got \"much\"");
}

/// As PEFT and diffusers write and load folders.
#[test]
fn folders_of_adapters() {
    let case = Case::new();
    let (a, b) = (normal("a", &[4, 48]), normal("b", &[48, 4]));
    let stem = "base_model.model.transformer_blocks.1.attn.to_out.0";
    let tensors =
        |b: &Tensor| [(format!("{stem}.lora_A.weight"), a.clone()), (format!("{stem}.lora_B.weight"), b.clone())];
    let written = |path: &Path, tensors: &[(String, Tensor)]| {
        archive::write(path, tensors.iter().map(|(n, x)| (n.as_str(), x)), &BTreeMap::new()).unwrap();
    };
    let folder = tempfile::tempdir().unwrap();
    let load = |path: &Path| case.velocity(&case.base.load_lora(path, false).unwrap());
    let half = folder.path().join("half");
    written(&half, &tensors(&(&b * 0.5).unwrap()));
    let half = load(&half);
    std::fs::remove_file(folder.path().join("half")).unwrap();
    let none = case.base.load_lora(folder.path(), false).err().unwrap();
    assert!(
        none.message
            .ends_with("expected one file of adapters such as `adapter_model.safetensors` in the folder, got 0"),
        "{none}"
    );
    let config = folder.path().join("adapter_config.json");
    std::fs::write(&config, "\u{feff}{\"r\": 4, \"lora_alpha\": 2, \"peft_type\": \"LORA\"}").unwrap();
    for name in ["other.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.safetensors"] {
        written(&folder.path().join(name), &tensors(&b));
        assert!(error(&load(folder.path()), &half) < 1e-6, "{name}");
        assert!(error(&load(&folder.path().join(name)), &half) < 1e-6, "{name}");
    }
    written(&folder.path().join("adapter_model.safetensors"), &tensors(&(&b * 0.25).unwrap()));
    std::fs::write(&config, "{\"r\": 4}").unwrap();
    assert!(error(&load(folder.path()), &half) < 1e-6, "PEFT's own alpha is 8");
    for init in ["pissa", "pissa_niter_16", "olora", "corda", "loftq"] {
        std::fs::write(&config, format!("{{\"r\": 4, \"init_lora_weights\": \"{init}\"}}")).unwrap();
        let refusal = case.base.load_lora(folder.path(), false).err().unwrap();
        let told = format!("adapter_config.json: the adapters were begun by {init}, which changes the base");
        assert!(refusal.message.contains(&told), "{refusal}");
        assert!(refusal.hint.unwrap().contains("path_initial_model_for_weight_conversion"));
    }
    for init in ["\"gaussian\"", "\"eva\"", "true"] {
        std::fs::write(&config, format!("{{\"r\": 4, \"init_lora_weights\": {init}}}")).unwrap();
        assert!(error(&load(folder.path()), &half) < 1e-6, "{init}");
    }
    std::fs::remove_file(&config).unwrap();
    std::fs::create_dir(&config).unwrap();
    let unread = case.base.load_lora(&folder.path().join("adapter_model.safetensors"), false).err().unwrap();
    assert!(unread.message.ends_with("adapter_config.json: it is a folder, not a file"), "{unread}");
}

/// One of several files would change some modules and be silent of the others.
#[test]
fn adapters_in_several_files_are_refused() {
    let (case, folder) = (Case::new(), tempfile::tempdir().unwrap());
    let part = folder.path().join("adapter_model-00001-of-00002.safetensors");
    std::fs::copy(golden(FILES[0].0), &part).unwrap();
    for path in [folder.path(), &part] {
        let refusal = case.base.load_lora(path, false).err().unwrap().message;
        assert!(refusal.ends_with("expected all adapters in one file, got them in 2 files"), "{refusal}");
    }
    let only = folder.path().join("adapter_model-00001-of-00001.safetensors");
    std::fs::rename(&part, &only).unwrap();
    for path in [folder.path(), &only] {
        case.base.load_lora(path, false).unwrap();
    }
}

/// BFL's last layer has (shift, scale), diffusers' (scale, shift).
#[test]
fn the_last_layers_halves_change_places() {
    let case = Case::new();
    let (a, b) = (normal("a", &[2, 48]), normal("b", &[96, 2]));
    let swapped = Tensor::cat(&[b.narrow(0, 48, 48).unwrap(), b.narrow(0, 0, 48).unwrap()], 0).unwrap();
    let own =
        [("transformer.norm_out.linear.lora_A.weight", a.clone()), ("transformer.norm_out.linear.lora_B.weight", b)];
    let bfl = [
        ("diffusion_model.final_layer.adaLN_modulation.1.lora_A.weight", a),
        ("diffusion_model.final_layer.adaLN_modulation.1.lora_B.weight", swapped),
    ];
    let [own, bfl] = [own, bfl].map(|tensors| case.velocity(&case.load(&tensors, &[]).unwrap()));
    assert_eq!(error(&bfl, &own), 0.0);
}

#[test]
fn nothing_is_skipped() {
    let case = Case::new();
    let (a, b) = (normal("a", &[4, 48]), normal("b", &[48, 4]));
    let refused = |tensors: &[(&str, &Tensor)], metadata: &[(&str, &str)]| {
        let tensors: Vec<_> = tensors.iter().map(|(name, x)| (*name, (*x).clone())).collect();
        case.load(&tensors, metadata).err().unwrap()
    };
    let q = "transformer.transformer_blocks.0.attn.to_q";
    let names =
        [format!("{q}.lora_A.weight"), format!("{q}.lora_B.weight"), format!("{q}.dora_scale"), format!("{q}.alpha")];
    let [qa, qb, dora, alpha] = names.each_ref().map(String::as_str);
    for (message, tensors) in [
        (
            "F: tensor `transformer.transformer_blocks.0.attn.to_p.lora_A.weight`: the model has no linear module `transformer_blocks.0.attn.to_p`\nhint: the nearest is `transformer_blocks.0.attn.to_",
            vec![
                ("transformer.transformer_blocks.0.attn.to_p.lora_A.weight", &a),
                ("transformer.transformer_blocks.0.attn.to_p.lora_B.weight", &b),
            ],
        ),
        (
            "the model has no linear module `double_blocks_9_img_mlp_0`\nhint: the nearest is `double_blocks_",
            vec![
                ("lora_unet_double_blocks_9_img_mlp_0.lora_down.weight", &a),
                ("lora_unet_double_blocks_9_img_mlp_0.lora_up.weight", &b),
            ],
        ),
        ("must have its partner B (lora_B, lora_up) beside it", vec![(qa, &a)]),
        ("must have its partner A (lora_A, lora_down) beside it", vec![(qb, &b)]),
        ("must have shapes [rank, 48] and [48, rank], got [48, 4] and [4, 48]", vec![(qa, &b), (qb, &a)]),
        ("must have shapes [rank, 48] and [48, rank], got [4, 48] and [4, 48]", vec![(qa, &a), (qb, &a)]),
        ("belongs to DoRA; only plain LoRA is read", vec![(qa, &a), (qb, &b), (dora, &a)]),
        ("belongs to LoKr", vec![("transformer.x.lokr_w1", &a)]),
        (
            "and `.alpha`, got tensor `transformer.proj_out.weight`",
            vec![(qa, &a), (qb, &b), ("transformer.proj_out.weight", &a)],
        ),
        ("must hold one number, got shape [4, 48]", vec![(qa, &a), (qb, &b), (alpha, &a)]),
        (
            "module `transformer_blocks.0.attn.to_q` is changed twice",
            vec![
                (qa, &a),
                (qb, &b),
                ("transformer_blocks.0.attn.to_q.lora_A.weight", &a),
                ("transformer_blocks.0.attn.to_q.lora_B.weight", &b),
            ],
        ),
        ("expected LoRA tensors such as `transformer.<module>.lora_A.weight`, got none", vec![]),
    ] {
        let refusal = refused(&tensors, &[]);
        assert!(refusal.contains(message), "{refusal}");
    }
    for (message, metadata) in [
        ("F: lora_adapter_metadata: not valid", "{"),
        ("lora_adapter_metadata: the adapters are DoRA", r#"{"transformer.use_dora": true}"#),
        (
            "lora_adapter_metadata: alpha_pattern: expected ends of module names and numbers, got `to_.*`",
            r#"{"transformer.alpha_pattern": {"to_.*": 1}}"#,
        ),
    ] {
        let refusal = refused(&[(qa, &a), (qb, &b)], &[("lora_adapter_metadata", metadata)]);
        assert!(refusal.contains(message), "{refusal}");
    }
    let adapted = case.base.load_lora(&golden(FILES[0].0), false).unwrap();
    let twice = adapted.load_lora(&golden(FILES[0].0), false).err().unwrap().to_string();
    assert!(
        twice.starts_with("load_lora: expected a model without adapters, got 3 of them\nhint: add them into"),
        "{twice}"
    );
}

#[test]
fn strength_is_live_and_may_depend_on_time() {
    let case = Case::new();
    let tuned = case.tuned(2, &Targets::Usual);
    let half = tuned.strength(0.5).unwrap();
    let by = |f: fn(f64) -> f64| tuned.strength_by_time(Arc::new(move |t| Ok(f(t)))).unwrap();
    let (base, full) = (case.velocity(&case.base), case.velocity(&tuned));
    assert_eq!(error(&case.velocity(&tuned.strength(0.0).unwrap()), &base), 0.0);
    assert_eq!(error(&case.velocity(&by(|_| 0.0)), &base), 0.0);
    assert_eq!(error(&case.velocity(&by(|_| 1.0)), &full), 0.0);
    assert_eq!(error(&case.velocity(&half.strength(2.0).unwrap()), &full), 0.0);
    let before = case.velocity(&half);
    // Times are 0.1 and more, one per sample: those of one strength go together.
    let times: Vec<f64> = case.t().to_vec1().unwrap();
    let bound = times.iter().copied().fold(0.0, f64::max) - 1e-3;
    let early = tuned.strength_by_time(Arc::new(move |t| Ok(if t < bound { 1.0 } else { 0.0 }))).unwrap();
    let mixed = case.velocity(&early);
    for (row, t) in times.iter().enumerate() {
        let expected = if *t < bound { &full } else { &base };
        assert!(error(&mixed.get(row).unwrap(), &expected.get(row).unwrap()) < 1e-5, "sample {row} at {t}");
    }
    // Gradients pass to the states, sample by sample, and to the parameters.
    let (cotangent, c) = (normal("cotangent", case.x().dims()), case.condition());
    let back = |flow: &Flow| vjp(|x| flow.velocity(x, &case.t(), &c), &case.x(), &cotangent).unwrap().1;
    let (mixed_back, full_back, base_back) = (back(&early), back(&tuned), back(&case.base));
    for (row, t) in times.iter().enumerate() {
        let expected = if *t < bound { &full_back } else { &base_back };
        assert!(error(&mixed_back.get(row).unwrap(), &expected.get(row).unwrap()) < 1e-5, "sample {row} at {t}");
    }
    let params: Vec<Tensor> = tuned.params().into_iter().map(|(_, tensor)| tensor).collect();
    let loss = early.velocity(&case.x(), &case.t(), &c).unwrap().sqr().unwrap().sum_all().unwrap();
    assert!(gradients(&loss, &params).unwrap().iter().all(|gradient| top(gradient) > 0.0));
    for refused in [early.merge().err(), early.save_lora(Path::new("x"), Form::Diffusers, None).err()] {
        assert!(refused.unwrap().message.contains("got one that depends on time"));
    }
    // Training the policy shows in all of them.
    let (_, b) = tuned.params().into_iter().find(|(name, _)| name.contains("lora_B")).unwrap();
    b.set(&(b.constant() * 3.0).unwrap()).unwrap();
    assert!(error(&case.velocity(&half), &before) > 1e-4);
    assert!(error(&case.velocity(&early), &mixed) > 1e-4);
    let folder = tempfile::tempdir().unwrap();
    half.save_lora(&folder.path().join("half.safetensors"), Form::Diffusers, None).unwrap();
    let again = case.base.load_lora(&folder.path().join("half.safetensors"), false).unwrap();
    assert!(error(&case.velocity(&again), &case.velocity(&half)) < 2e-6);
}

#[test]
fn sit_keeps_its_own_names() {
    let choices = ModelOptions { options: [("vae", "tests/golden/sit/vae".into())].into(), ..ModelOptions::default() };
    let base = open("tests/golden/sit/sit.safetensors", &Sources::default(), &choices, &Device::Cpu).unwrap();
    let g = amscript::tensor::file::load("tests/golden/sit/expected.safetensors", &Device::Cpu).unwrap();
    let (x, t) = (&g["in.x"], &g["in.t"]);
    let c = base.encode_labels(&vec![1; x.dim(0).unwrap()]).unwrap();
    let velocity = |flow: &Flow| flow.velocity(x, t, &c).unwrap().constant();
    let targets = Targets::Named(["qkv", "fc2", "final_layer.linear"].map(String::from).to_vec());
    let flow = tuned(&base, 2, &targets);
    assert!(error(&velocity(&flow), &velocity(&base)) > 1e-3);
    assert!(error(&velocity(&flow.merge().unwrap()), &velocity(&flow)) < 1e-5);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    for (form, name) in [
        (Form::Diffusers, "transformer.blocks.0.attn.qkv.lora_A.weight"),
        (Form::Kohya, "lora_unet_blocks_0_attn_qkv.lora_down.weight"),
    ] {
        flow.save_lora(&path, form, None).unwrap();
        assert!(archive::Archive::open(&path).unwrap().entries().contains_key(name));
        assert!(error(&velocity(&base.load_lora(&path, false).unwrap()), &velocity(&flow)) < 2e-6, "{form:?}");
    }
}
