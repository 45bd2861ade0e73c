//! Rewards against their reference libraries: features, scores and gradients to the pixels, from files in the published layouts.

use amscript::nn::opener::Found;
use amscript::nn::source::{Folder, Sources};
use amscript::reward::RewardModel;
use amscript::reward::clip_encoder::ClipCache;
use amscript::reward::open::{RewardOptions, open};
use amscript::tensor::grad::value_and_grad;
use amscript::tensor::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;

fn golden(case: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(case)
}

fn expected(case: &str) -> HashMap<String, Tensor> {
    amscript::tensor::file::load(golden(case).join("expected.safetensors"), &Device::Cpu).unwrap()
}

fn prompts(case: &str) -> Vec<String> {
    let text = std::fs::read(golden(case).join("case.json")).unwrap();
    let case: serde_json::Value = serde_json::from_slice(&text).unwrap();
    case["prompts"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_string()).collect()
}

fn reward_model<const N: usize>(
    place: &str,
    weights: Option<&str>,
    options: [(&str, serde_json::Value); N],
) -> RewardModel {
    let found = Found::in_folder(place, Folder::disk(golden(place)));
    let found = Found { weights: weights.map(PathBuf::from), ..found };
    // a CLIP of transformers does not tell which of the two it is for
    let kind = ["pickscore", "clipscore"].into_iter().find(|kind| place.ends_with(kind)).map(String::from);
    let choices = RewardOptions { kind, options: options.into(), ..RewardOptions::default() };
    open(&found, &choices, &ClipCache::default(), &Sources::default(), &Device::Cpu).unwrap()
}

fn largest(t: &Tensor) -> f64 {
    t.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn assert_near(what: &str, got: &Tensor, wanted: &Tensor, tolerance: f64) {
    let error = largest(&(got - wanted).unwrap());
    assert!(error < tolerance, "{what}: largest difference {error:.2e}, tolerance {tolerance:.0e}");
}

/// Pixels, features, scores and gradients of a CLIP reward; `prefix` stands before the names of the golden tensors.
fn check(reward_model: &RewardModel, case: &str, prefix: &str, score: &str, gradient: &str, tolerance: f64) {
    let (golden, prompts) = (expected(case), prompts(case));
    let encoder = reward_model.encoder().unwrap();
    let text = encoder.text_rows(&prompts).unwrap();
    assert_near("text", &text, &golden[&format!("out.{prefix}text_features")], 1e-5);
    for i in 0..3 {
        let image = &golden[&format!("in.image.{i}")];
        let row = |name: &str| golden[name].narrow(0, i, 1).unwrap();
        let pixels = encoder.preprocess.apply(image).unwrap();
        assert_near("pixels", &pixels, &row("out.pixels"), 1e-5);
        let raw = encoder.clip.image_features(&pixels).unwrap();
        assert_near("raw features", &raw, &row(&format!("out.{prefix}image_features_raw")), 1e-5);
        assert_near(
            "features",
            &reward_model.features(image).unwrap(),
            &row(&format!("out.{prefix}image_features")),
            1e-5,
        );
        let (value, slope) = value_and_grad(|x| reward_model.score(x, &prompts[i..=i])?.sum_all(), image).unwrap();
        assert_near("score", &value.reshape(1).unwrap(), &row(score), tolerance);
        let wanted = &golden[&format!("{gradient}.{i}")];
        assert_near("gradient", &slope, wanted, 1e-4 * largest(wanted));
        let all = reward_model.similarities(image, &prompts).unwrap();
        assert_near("similarities", &all.get(0).unwrap().get(i).unwrap().reshape(1).unwrap(), &row(score), tolerance);
    }
}

#[test]
fn hpsv2() {
    let reward_model = reward_model("clip_openclip", Some("HPS_tiny_compressed.pt"), []);
    check(&reward_model, "clip_openclip", "", "out.score", "out.score_grad", 1e-5);
    assert!(
        reward_model.details().ends_with("bicubic, antialias, shorter side to 28, centre crop"),
        "{}",
        reward_model.details()
    );
}

#[test]
fn hpsv2_has_its_sizes_from_the_tensors_where_no_config_lies_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let from = golden("clip_openclip/HPS_tiny_compressed.pt");
    std::fs::copy(from, folder.path().join("HPS_v2.1_compressed.pt")).unwrap();
    let found = Found::in_folder("here", Folder::disk(folder.path()));
    let open = |version: &str| {
        let choices = RewardOptions { options: [("version", version.into())].into(), ..RewardOptions::default() };
        open(&found, &choices, &ClipCache::default(), &Sources::default(), &Device::Cpu)
    };
    // heads are as published, 64 wide, which does not fit this width of 32
    let error = open("v2.1").err().unwrap();
    assert!(error.message.contains("a width divisible by the heads"), "{error}");
    assert!(open("v2.0").err().unwrap().message.contains("no readable `HPS_v2_compressed.pt`"));
    assert!(open("v3").err().unwrap().message.contains("expected `v2.0` or `v2.1` for `version`, got `v3`"));
}

#[test]
fn pickscore() {
    let reward_model = reward_model("clip_hf/pickscore", None, []);
    assert!(reward_model.describe().starts_with("pickscore"), "{}", reward_model.describe());
    check(&reward_model, "clip_hf", "pickscore.", "out.pickscore.score", "out.pickscore.grad", 1e-4);
}

/// Neither the folder's name nor its path decides, but what lies in it or who named it.
#[test]
fn a_clip_says_which_reward_it_is_or_the_user_does() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("pickscore");
    std::fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("clip_hf/clipscore").join(file), folder.join(file)).unwrap();
    }
    let open = |name: &str| {
        let found = Found::in_folder(name, Folder::disk(&folder));
        open(&found, &RewardOptions::default(), &ClipCache::default(), &Sources::default(), &Device::Cpu)
            .map(|reward| reward.describe())
            .map_err(|e| e.to_string())
    };
    let path = folder.display().to_string();
    let asked = open(&path).unwrap_err();
    assert_eq!(asked, format!("reward: `{path}` may be pickscore and clipscore\nhint: say which with `kind: name`"));
    assert_eq!(open("openai/clip-vit-large-patch14").unwrap(), "clipscore openai/clip-vit-large-patch14");
    assert_eq!(open("pickscore").unwrap(), "pickscore pickscore");
    std::fs::write(folder.join("README.md"), "# PickScore v1\nA scoring function").unwrap();
    assert_eq!(open("judge").unwrap(), "pickscore judge");
}

#[test]
fn clipscore() {
    let plain = reward_model("clip_hf/clipscore", None, []);
    check(&plain, "clip_hf", "clipscore.", "out.clipscore.cosine", "out.clipscore.grad", 1e-5);
    let (golden, prompts) = (expected("clip_hf"), prompts("clip_hf"));
    for (scale, positive, name) in [(2.5, true, "score_2.5"), (100.0, false, "score_100")] {
        let reward_model =
            reward_model("clip_hf/clipscore", None, [("scale", scale.into()), ("positive", positive.into())]);
        for i in 0..3 {
            let score = reward_model.score(&golden[&format!("in.image.{i}")], &prompts[i..=i]).unwrap();
            assert_near(name, &score, &golden[&format!("out.clipscore.{name}")].narrow(0, i, 1).unwrap(), 1e-4);
        }
    }
}

#[test]
fn a_prefix_stands_before_each_prompt() {
    let behind = reward_model("clip_hf/clipscore", None, [("prefix", "A photo depicts ".into())]);
    let (behind, plain) = (behind, reward_model("clip_hf/clipscore", None, []));
    let image = &expected("clip_hf")["in.image.0"];
    let score = |reward_model: &RewardModel, prompt: &str| {
        reward_model.score(image, &[prompt.to_string()]).unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(score(&behind, "a cat"), score(&plain, "A photo depicts a cat"));
    assert!(score(&behind, "a cat") != score(&plain, "a cat"));
    assert!(behind.details().contains("prompts behind `A photo depicts `"), "{}", behind.details());
}
