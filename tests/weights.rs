//! Bad weights are refused with the file or tensor named, before a tensor is read.

use amscript::Result;
use amscript::flow::Velocity;
use amscript::model::{Flow, ModelOptions, open};
use amscript::nn::archive;
use amscript::nn::source::Sources;
use amscript::tensor::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const FILE: &str = "transformer/diffusion_pytorch_model.safetensors";

/// A copy of the golden pipeline that can be damaged.
struct Copy {
    root: TempDir,
}

impl Copy {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        copy(Path::new("tests/golden/flux2"), root.path());
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn tensors(&self) -> BTreeMap<String, Tensor> {
        amscript::tensor::file::load(self.path(FILE), &Device::Cpu).unwrap().into_iter().collect()
    }

    fn write(&self, name: &str, tensors: &BTreeMap<String, Tensor>) {
        archive::write(&self.path(name), tensors.iter().map(|(n, t)| (n.as_str(), t)), &BTreeMap::new()).unwrap();
    }

    fn open(&self) -> Result<Flow> {
        open(self.root.path().to_str().unwrap(), &Sources::default(), &ModelOptions::default(), &Device::Cpu)
    }

    fn refusal(&self) -> String {
        self.open().err().expect("refused").to_string().replace(&self.root.path().display().to_string(), "F")
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in from.read_dir().unwrap().flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        match source.is_dir() {
            true => {
                std::fs::create_dir_all(&target).unwrap();
                copy(&source, &target);
            }
            false => std::fs::write(target, std::fs::read(source).unwrap()).unwrap(),
        }
    }
}

#[test]
fn tensors_that_do_not_fit_the_model() {
    let copy = Copy::new();
    let good = copy.tensors();
    let changed = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = good.clone();
        change(&mut tensors);
        copy.write(FILE, &tensors);
        copy.refusal()
    };
    let name = "transformer_blocks.1.ff.linear_out.weight";
    let missing = changed(&|t| drop(t.remove(name)));
    assert!(missing.starts_with(&format!("F/{FILE}: tensor `{name}` is missing")), "{missing}");
    let extra = changed(&|t| drop(t.insert("transformer_blocks.2.attn.to_q.weight".into(), good[name].clone())));
    assert!(
        extra.contains("1 of 54 tensors are not part of this model, the first is `transformer_blocks.2"),
        "{extra}"
    );
    let misshaped = changed(&|t| drop(t.insert(name.into(), good[name].t().unwrap().contiguous().unwrap())));
    assert!(misshaped.contains(&format!("tensor `{name}` must have shape [48, 144], got [144, 48]")), "{misshaped}");
    let infinite = changed(&|t| drop(t.insert(name.into(), (&good[name] * f64::INFINITY).unwrap())));
    assert!(infinite.contains(&format!("tensor `{name}` has numbers that are")), "{infinite}");
    let whole = changed(&|t| drop(t.insert(name.into(), good[name].to_dtype(DType::I64).unwrap())));
    assert!(whole.contains(&format!("tensor `{name}` must be of type f32, f64, bf16 or f16, got i64")), "{whole}");
}

#[test]
fn wrapped_networks_are_read_and_scaled_ones_refused() {
    let copy = Copy::new();
    let good = copy.tensors();
    let under = |wrapper: &str| good.iter().map(|(name, x)| (format!("{wrapper}{name}"), x.clone())).collect();
    for wrapper in [
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_fsdp_wrapped_module.",
        "_forward_module.module.",
        "transformer.",
        "module.policy.transformer.",
    ] {
        copy.write(FILE, &under(wrapper));
        assert!(copy.open().is_ok(), "{wrapper}");
    }
    for scale in
        ["transformer_blocks.0.attn.to_q.scale_weight", "transformer_blocks.0.attn.to_q.weight_scale", "scaled_fp8"]
    {
        let mut tensors = good.clone();
        tensors.insert(scale.into(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
        copy.write(FILE, &tensors);
        let refusal = copy.refusal();
        assert!(refusal.starts_with(&format!("F/{FILE}: tensor `{scale}` scales weights")), "{refusal}");
    }
}

#[test]
fn damaged_files() {
    let copy = Copy::new();
    let bytes = std::fs::read(copy.path(FILE)).unwrap();
    let with = |bytes: &[u8]| {
        std::fs::write(copy.path(FILE), bytes).unwrap();
        copy.refusal()
    };
    let cut = with(&bytes[..bytes.len() - 100]);
    assert!(cut.starts_with(&format!("F/{FILE}: tensor `")) && cut.contains("the file is cut off"), "{cut}");
    let mut header = bytes.clone();
    header[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert!(with(&header).contains("expected a safetensors header of at most 16777216 bytes, got 1099511627776"));
    assert!(with(b"").contains("expected a file of tensors, got 0 bytes"));
    assert!(with(b"version https://git-lfs.github.com/spec/v1\n").contains("got a Git LFS pointer"));
    for (bytes, kind) in [
        (&b"GGUF\x03\0\0\0\0\0"[..], "a GGUF file"),
        (b"<!DOCTYPE html><html>", "HTML or XML"),
        (b"{\"error\": 404}", "JSON"),
        (b"\x93NUMPY\x01\0v\0", "a NumPy file"),
        (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file"),
    ] {
        assert!(with(bytes).contains(&format!("expected a safetensors file, got {kind}")), "{kind}");
    }
}

#[test]
fn shards_are_one_model_and_absent_ones_are_named() {
    let copy = Copy::new();
    let (mut first, mut second) = (BTreeMap::new(), BTreeMap::new());
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in copy.tensors().into_iter().enumerate() {
        let (shard, file) = if i % 2 == 0 { (&mut first, "a.safetensors") } else { (&mut second, "b.safetensors") };
        shard.insert(name.clone(), tensor);
        map.insert(name, file.into());
    }
    let whole = copy.open().unwrap();
    std::fs::remove_file(copy.path(FILE)).unwrap();
    copy.write("transformer/a.safetensors", &first);
    copy.write("transformer/b.safetensors", &second);
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(copy.path(&format!("{FILE}.index.json")), index).unwrap();
    let sharded = copy.open().unwrap();
    let velocity = |flow: &Flow| {
        let x = flow.noise(1, Some(&[64, 96]), &mut amscript::tensor::Rng::new(0)).unwrap();
        let condition = flow.encode(&["a red cat".to_string()]).unwrap();
        let t = Tensor::new(&[0.3f32], &Device::Cpu).unwrap();
        flow.velocity(&x, &t, &condition).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(velocity(&whole), velocity(&sharded));
    std::fs::remove_file(copy.path("transformer/b.safetensors")).unwrap();
    assert!(copy.refusal().contains("F/transformer: no readable `b.safetensors`"), "{}", copy.refusal());
}

/// What one family knows, another refuses, and names what it has.
#[test]
fn options_of_other_families() {
    let options = |key: &str| ModelOptions { options: [(key, serde_json::json!(3))].into(), ..ModelOptions::default() };
    let refusal = |key| open("tiny/flux2", &Sources::default(), &options(key), &Device::Cpu).err().unwrap().to_string();
    let classes = refusal("guide_channels");
    assert!(classes.starts_with("flow: family `flux2` has no option `guide_channels`"), "{classes}");
    assert!(classes.contains("hint: it has size, vae, text_encoder, tokenizer, max_sequence_length"), "{classes}");
    assert!(refusal("num_head").contains("did you mean `num_heads`?"));
    let unknown = ModelOptions { family: Some("sd3".into()), ..ModelOptions::default() };
    let error = open("tiny/flux2", &Sources::default(), &unknown, &Device::Cpu).err().unwrap().to_string();
    assert_eq!(error, "flow: expected one of flux2, sit for `family`, got `sd3`");
    let folder = tempfile::tempdir().unwrap();
    let open = open(folder.path().to_str().unwrap(), &Sources::default(), &ModelOptions::default(), &Device::Cpu);
    assert!(open.err().unwrap().message.starts_with("flow: expected one of flux2, sit in "));
}

#[test]
fn parts_that_do_not_belong_together() {
    let copy = Copy::new();
    let choices = |choices: ModelOptions| {
        open(copy.root.path().to_str().unwrap(), &Sources::default(), &choices, &Device::Cpu).err().unwrap().to_string()
    };
    let settings = |key: &str, value: serde_json::Value| ModelOptions {
        options: [(key, value)].into(),
        ..ModelOptions::default()
    };
    let layers = choices(settings("text_encoder_out_layers", serde_json::json!([1, 2])));
    assert!(layers.contains("joint_attention_dim must be the 40 features of the prompts, got 60"), "{layers}");
    let size = choices(settings("size", serde_json::json!([64, 100])));
    assert!(size.contains("height and width must be multiples of 16, got [64, 100]"), "{size}");
    let axes = choices(settings("axes_dims_rope", serde_json::json!([8, 8, 8, 8])));
    assert!(axes.contains("four even numbers that add up to attention_head_dim 24"), "{axes}");
    let nowhere = choices(ModelOptions { weights: Some("nowhere.safetensors".into()), ..ModelOptions::default() });
    assert!(nowhere.contains("nowhere.safetensors: expected a folder or file of weights, got neither"), "{nowhere}");
}
