//! LPIPS 0.1 (arXiv:1801.03924): distance of images as weighted squared differences of a trunk's unit-length features.

use super::check_images;
use super::pairwise::Distance;
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_nn::archive::Archive;
use amscript_nn::layout::{self, Piece};
use amscript_nn::weights::{Init, Weights};
use amscript_tensor::op::{conv2d, max_pool2d, relu, unit_channels};
use amscript_tensor::{DType, Device, Rng, Tensor};
use std::path::Path;

/// One step of a trunk.
enum Step {
    /// A convolution `features.{index}` and its ReLU.
    Conv { index: usize, kernel: usize, stride: usize, padding: usize },
    /// The largest of windows of this size, every second one.
    Pool(usize),
    /// The features here are compared.
    Tap,
}

use Step::{Pool, Tap};

const fn conv(index: usize, kernel: usize, stride: usize, padding: usize) -> Step {
    Step::Conv { index, kernel, stride, padding }
}

const fn same(index: usize) -> Step {
    conv(index, 3, 1, 1)
}

/// The convolutions of a torchvision classifier, up to the last tap.
pub struct Net {
    pub name: &'static str,
    /// File name of the trunk that [`Lpips::save`] writes.
    file: &'static str,
    steps: &'static [Step],
}

/// The trunks that LPIPS was trained for and are read here.
pub static NETS: [Net; 2] = [
    Net {
        name: "alex",
        file: "alexnet.safetensors",
        steps: &[
            conv(0, 11, 4, 2),
            Tap,
            Pool(3),
            conv(3, 5, 1, 2),
            Tap,
            Pool(3),
            same(6),
            Tap,
            same(8),
            Tap,
            same(10),
            Tap,
        ],
    },
    Net {
        name: "vgg",
        file: "vgg16.safetensors",
        steps: &[
            same(0),
            same(2),
            Tap,
            Pool(2),
            same(5),
            same(7),
            Tap,
            Pool(2),
            same(10),
            same(12),
            same(14),
            Tap,
            Pool(2),
            same(17),
            same(19),
            same(21),
            Tap,
            Pool(2),
            same(24),
            same(26),
            same(28),
            Tap,
        ],
    },
];

impl Net {
    pub fn named(name: &str) -> Result<&'static Self> {
        let found = NETS.iter().find(|net| net.name == name);
        found
            .ok_or_else(|| Error::new(Kind::Value, format!("lpips: `net` must be \"alex\" or \"vgg\", got \"{name}\"")))
    }

    fn convs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Conv { index, kernel, .. } => Some((*index, *kernel)),
            _ => None,
        })
    }

    /// The shortest side that every step fits into.
    fn least(&self) -> usize {
        let fits = |side: &usize| {
            let walk = self.steps.iter().try_fold(*side, |side, step| match step {
                Step::Conv { kernel, stride, padding, .. } => {
                    (side + 2 * padding).checked_sub(*kernel).map(|rest| rest / stride + 1)
                }
                Pool(size) => side.checked_sub(*size).map(|rest| rest / 2 + 1),
                Tap => Some(side),
            });
            walk.is_some()
        };
        (1..).find(fits).unwrap_or_default()
    }

    /// Whether a file holds these convolutions and no other net's.
    fn fits(&self, archive: &Archive) -> bool {
        let shape = |index: usize| {
            let entries = archive.entries().iter();
            entries
                .filter(|(name, _)| canonical(name).as_deref() == Some(&format!("features.{index}.weight")))
                .map(|(_, e)| &e.shape)
                .next()
        };
        self.convs().all(|(index, kernel)| shape(index).is_some_and(|shape| shape.len() == 4 && shape[2] == kernel))
    }
}

/// A stored name as torchvision and the files of heads have it: `net.slice2.3.bias` is `features.3.bias`, `lins.0..` is `lin0..`.
fn canonical(name: &str) -> Option<String> {
    let plain = layout::plain(name);
    let mut name = plain.as_str();
    while let Some(rest) = ["module.", "model."].iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = rest;
    }
    if let Some(rest) = name.strip_prefix("net.slice") {
        return rest.split_once('.').map(|(_, rest)| format!("features.{rest}"));
    }
    match name.strip_prefix("lins.").and_then(|rest| rest.split_once('.')) {
        Some((tap, rest)) => Some(format!("lin{tap}.{rest}")),
        None => (name.starts_with("features.") || name.starts_with("lin")).then(|| name.to_string()),
    }
}

fn head(tap: usize) -> String {
    format!("lin{tap}.model.1.weight")
}

/// Channels of the heads in a file, none when it holds none.
fn heads(archive: &Archive) -> Vec<usize> {
    let shape = |tap: usize| {
        let named = |name: &String| canonical(name).is_some_and(|name| name == head(tap));
        archive.entries().iter().find(|(name, _)| named(name)).map(|(_, e)| e.shape.get(1).copied().unwrap_or_default())
    };
    (0..).map_while(shape).collect()
}

/// Channels of a trunk's taps.
fn taps(net: &Net, weights: &Weights) -> Vec<usize> {
    let mut channels = 0;
    let mut taps = Vec::new();
    for step in net.steps {
        match step {
            Step::Conv { index, .. } => {
                let shape = weights.shape(&format!("features.{index}.weight"));
                channels = shape.and_then(|s| s.first().copied()).unwrap_or_default();
            }
            Tap => taps.push(channels),
            Pool(_) => {}
        }
    }
    taps
}

/// A trunk and its heads.
pub struct Lpips {
    net: &'static Net,
    weights: Weights,
    /// Weight and bias by convolution, in order.
    convs: Vec<(Tensor, Tensor)>,
    /// `[1, channels, 1, 1]` by tap.
    heads: Vec<Tensor>,
    /// Images are in `[-1, 1]` instead of `[0, 1]`.
    pub signed: bool,
}

impl Lpips {
    /// From a trunk's file and its heads', or one with both, among these; of several trunks the one of `net`.
    pub fn open(mut archives: Vec<Archive>, net: Option<&str>, device: &Device) -> Result<Self> {
        let asked = net.map(Net::named).transpose()?;
        let origins = archives.iter().map(Archive::origin).collect::<Vec<_>>().join(", ");
        let known = |archive| NETS.iter().find(|n| n.fits(archive) && asked.is_none_or(|net| net.name == n.name));
        let found: Vec<(usize, &'static Net)> =
            archives.iter().enumerate().filter_map(|(i, archive)| Some((i, known(archive)?))).collect();
        let (trunk, net) = match found[..] {
            [(i, net)] => (archives.swap_remove(i), net),
            [] => {
                bail!(Missing, "lpips: expected the convolutions of AlexNet or VGG16 (`features.0.weight` ..), got none in {origins}";
                hint: "put torchvision's `alexnet-owt-7be5be79.pth` or `vgg16-397923af.pth` beside the heads, or give `trunk: file`")
            }
            _ => bail!(Value, "lpips: expected one trunk, got {} in {origins}", found.len();
                hint: "say which with `net: \"alex\"` or `trunk: file`"),
        };
        let origin = trunk.origin().to_string();
        let read = |archive: Archive| -> Result<Weights> {
            let twice = archive.entries().keys().any(|name| name.ends_with(&head(0)));
            let layout = move |name: &str, shape: &[usize]| {
                let name = canonical(name).filter(|_| !(twice && name.contains("lins.")));
                name.map(|name| Piece::whole(name, shape)).into_iter().collect()
            };
            Weights::open_as(vec![archive], &layout, &[], DType::F32, device)
        };
        if !heads(&trunk).is_empty() {
            return Self::new(net, read(trunk)?, &[]);
        }
        let trunk = read(trunk)?;
        let wanted = taps(net, &trunk);
        let others: Vec<Vec<usize>> = archives.iter().map(heads).filter(|heads| !heads.is_empty()).collect();
        let Some(file) = archives.into_iter().find(|archive| heads(archive) == wanted) else {
            bail!(Missing, "lpips: expected heads of {wanted:?} channels for {origin}, got {others:?}";
                hint: "put LPIPS's `{}.pth` (weights/v0.1) beside the trunk, or give `heads: file`", net.name)
        };
        let mut tensors = trunk.tensors()?;
        tensors.extend(read(file)?.tensors()?);
        Self::new(net, Weights::from_tensors(&origin, tensors), &[])
    }

    /// A random trunk of these channels by convolution and heads that weigh all channels alike.
    pub fn random(net: &'static Net, channels: &[usize], rng: &Rng, dtype: DType, device: &Device) -> Result<Self> {
        let count = net.convs().count();
        if channels.len() != count || channels.contains(&0) {
            bail!(Value, "lpips_net: `channels` of {} must be {count} numbers above 0, got {channels:?}", net.name);
        }
        Self::new(net, Weights::random(rng, dtype, device), channels)
    }

    fn new(net: &'static Net, weights: Weights, channels: &[usize]) -> Result<Self> {
        let (mut inner, mut convs, mut at) = (3, Vec::new(), Vec::new());
        for (i, (index, kernel)) in net.convs().enumerate() {
            let module = weights.pp(format!("features.{index}"));
            let found = module.shape("weight").and_then(|shape| shape.first().copied());
            let outer = found.or(channels.get(i).copied()).unwrap_or_default();
            let deviation = (2.0 / (inner * kernel * kernel) as f64).sqrt();
            let weight = module.get("weight", &[outer, inner, kernel, kernel], Init::Normal(deviation))?;
            convs.push((weight, module.get("bias", &[outer], Init::Zeros)?));
            inner = outer;
            at.push(outer);
        }
        let mut heads = Vec::new();
        let mut conv = 0;
        for step in net.steps {
            match step {
                Step::Conv { .. } => conv += 1,
                Pool(_) => {}
                Tap => heads.push(weights.get(&head(heads.len()), &[1, at[conv - 1], 1, 1], Init::Ones)?),
            }
        }
        Ok(Self { net, weights, convs, heads, signed: false })
    }

    pub fn describe(&self) -> String {
        format!("lpips {}, {}", self.net.name, self.weights.origin())
    }

    /// The trunk's features at its taps, `[n, channels, height, width]` each, after the ReLU.
    pub fn taps(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        check_images("lpips", images, if self.signed { [-1.0, 1.0] } else { [0.0, 1.0] })?;
        let (least, (_, _, h, w)) = (self.net.least(), images.dims4()?);
        if h.min(w) < least {
            bail!(Shape, "lpips: images must be at least {least} pixels a side for {}, got {h} x {w}", self.net.name;
                hint: "resize them first");
        }
        let dtype = if images.dtype() == DType::F64 { DType::F64 } else { self.weights.compute() };
        let mut x = normalised(&images.to_dtype(dtype)?, self.signed)?;
        let (mut taps, mut convs) = (Vec::new(), self.convs.iter());
        for step in self.net.steps {
            match (step, convs.as_slice().first()) {
                (Step::Conv { stride, padding, .. }, Some((weight, bias))) => {
                    x = relu(&conv2d(&x, weight, Some(bias), *stride, *padding)?)?;
                    convs.next();
                }
                (Pool(size), _) => x = max_pool2d(&x, *size, 2)?,
                _ => taps.push(x.clone()),
            }
        }
        Ok(taps)
    }

    /// The terms of the distance by tap, `[n]` each, of what [`Distance::prepare`] made.
    pub fn terms(&self, a: &[Tensor], b: &[Tensor]) -> Result<Vec<Tensor>> {
        let term = |((a, b), head): ((&Tensor, &Tensor), &Tensor)| {
            let means = (a - b)?.sqr()?.flatten_from(2)?.mean(2)?;
            means.matmul(&head.to_dtype(means.dtype())?.reshape(((), 1))?)?.squeeze(1)
        };
        a.iter().zip(b).zip(&self.heads).map(term).collect()
    }

    /// The same network with variables: of the trunk, the heads or both.
    pub fn trainable(&self, trunk: bool, heads: bool) -> Result<Self> {
        let chosen = |name: &str| if name.starts_with("lin") { heads } else { trunk };
        Ok(Self { signed: self.signed, ..Self::new(self.net, self.weights.trainable(chosen)?, &[])? })
    }

    pub fn params(&self) -> Vec<(String, Tensor)> {
        self.weights.params()
    }

    /// Sets negative numbers of trainable heads to zero, so that the distance stays one.
    pub fn clamp_heads(&self) -> Result<()> {
        for head in self.heads.iter().filter(|head| head.is_variable()) {
            head.set(&head.constant().relu()?)?;
        }
        Ok(())
    }

    /// Writes trunk and heads as two safetensors files in f16, under the published names of tensors.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let refused = |e: std::io::Error| Error::new(Kind::File, format!("{}: {e}", folder.display()));
        amscript_base::file::make_folder(folder).map_err(refused)?;
        let (heads, trunk) = self.weights.tensors()?.into_iter().partition(|(name, _)| name.starts_with("lin"));
        let write =
            |file: &str, tensors| Weights::from_tensors(file, tensors).save(&folder.join(file), Some(DType::F16));
        write(self.net.file, trunk)?;
        write(&format!("{}.safetensors", self.net.name), heads)
    }
}

/// ImageNet's mean and deviation taken from images, as LPIPS writes them for `[-1, 1]`.
fn normalised(images: &Tensor, signed: bool) -> Result<Tensor> {
    let row = |values: [f64; 3]| Tensor::new(&values, images.device())?.to_dtype(images.dtype())?.reshape((1, 3, 1, 1));
    let x = if signed { images.clone() } else { images.affine(2.0, -1.0)? };
    x.broadcast_sub(&row([-0.030, -0.088, -0.188])?)?.broadcast_div(&row([0.458, 0.448, 0.450])?)
}

impl Distance for Lpips {
    /// Features of unit length over the channels of each place; a place where all are zero stays zero, and so its gradient.
    fn prepare(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        self.taps(images)?.iter().map(|x| unit_channels(x, 1e-20)).collect()
    }

    fn between(&self, a: &[Tensor], b: &[Tensor]) -> Result<Tensor> {
        let mut terms = self.terms(a, b)?.into_iter();
        let Some(first) = terms.next() else { bail!(Internal, "lpips: no taps") };
        terms.try_fold(first, |sum, term| sum + term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_nn::archive;
    use amscript_tensor::grad::{gradcheck, value_and_grad};
    use std::collections::BTreeMap;

    fn open(files: &[std::path::PathBuf]) -> Result<Lpips> {
        Lpips::open(files.iter().map(|file| Archive::open(file).unwrap()).collect(), None, &Device::Cpu)
    }

    const GOLDEN: &str = "../../tests/golden/lpips";

    fn top(x: &Tensor) -> f64 {
        x.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
    }

    /// The trunk whose weights the golden's formula gives.
    fn trunk(net: &Net, channels: &[usize], seed: u64) -> BTreeMap<String, Tensor> {
        let uniform = |n: u64, count: usize, scale: f32| -> Vec<f32> {
            let number = |i: u64| {
                let z = (seed << 40).wrapping_add(n << 32).wrapping_add(i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                (((z ^ (z >> 31)) >> 40) as f64 / 8_388_608.0 - 1.0) as f32 * scale
            };
            (0..count as u64).map(number).collect()
        };
        let (mut inner, mut tensors) = (3, BTreeMap::new());
        for (k, ((index, kernel), &outer)) in net.convs().zip(channels).enumerate() {
            let fan = inner * kernel * kernel;
            let weight = uniform(2 * k as u64, outer * fan, (6.0 / fan as f64).sqrt() as f32);
            let weight = Tensor::from_vec(weight, (outer, inner, kernel, kernel), &Device::Cpu).unwrap();
            let bias = Tensor::from_vec(uniform(2 * k as u64 + 1, outer, 0.1), outer, &Device::Cpu).unwrap();
            tensors.extend([(format!("features.{index}.weight"), weight), (format!("features.{index}.bias"), bias)]);
            inner = outer;
        }
        tensors
    }

    fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) {
        archive::write(path, tensors.iter().map(|(n, t)| (n.as_str(), t)), &BTreeMap::new()).unwrap();
    }

    fn golden(net: &str, channels: &[usize]) {
        let case: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(format!("{GOLDEN}/case.json")).unwrap()).unwrap();
        let g = amscript_tensor::file::load(format!("{GOLDEN}/expected.safetensors"), &Device::Cpu).unwrap();
        let tensors = trunk(Net::named(net).unwrap(), channels, case["trunk_seed"].as_u64().unwrap());
        for (name, tensor) in &tensors {
            let said = &case["trunk"][net][name];
            let values: Vec<f64> = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
            for (v, said) in values.iter().zip(said["first"].as_array().unwrap()) {
                assert_eq!(*v as f32, said.as_f64().unwrap() as f32, "{name}");
            }
            assert!((values.iter().sum::<f64>() - said["sum"].as_f64().unwrap()).abs() < 1e-6, "{name}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("trunk.safetensors");
        write(&file, &tensors);
        let files =
            [file, format!("{GOLDEN}/alex_heads.safetensors").into(), format!("{GOLDEN}/vgg_heads.safetensors").into()];
        let lpips = Lpips { signed: true, ..open(&files).unwrap() };
        assert_eq!(lpips.net.name, net);
        for case in (0..2).map(|i| format!("{net}.{i}")).filter(|case| g.contains_key(&format!("in.{case}.x"))) {
            let (x, y) = (&g[&format!("in.{case}.x")], lpips.prepare(&g[&format!("in.{case}.y")]).unwrap());
            let terms = Tensor::stack(&lpips.terms(&lpips.prepare(x).unwrap(), &y).unwrap(), 1).unwrap();
            let distance = lpips.between(&lpips.prepare(x).unwrap(), &y).unwrap();
            for (got, name) in [(terms, "per_layer"), (distance, "distance")] {
                let expected = &g[&format!("out.{case}.{name}")];
                let error = top(&((got - expected).unwrap() / expected).unwrap());
                assert!(error < 1e-5, "{case} {name}: {error}");
            }
            let sum = |x: &Tensor| lpips.between(&lpips.prepare(x)?, &y)?.sum_all();
            let (_, gradient) = value_and_grad(sum, x).unwrap();
            let expected = &g[&format!("out.{case}.grad_x")];
            let error = top(&(gradient - expected).unwrap()) / top(expected);
            assert!(error < 1e-3, "{case} gradient: {error}");
        }
    }

    #[test]
    fn alex_is_lpips() {
        golden("alex", &[64, 192, 384, 256, 256]);
    }

    #[test]
    fn vgg_is_lpips() {
        golden("vgg", &[64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]);
    }

    fn small(net: &str, dtype: DType) -> Lpips {
        let net = Net::named(net).unwrap();
        Lpips::random(net, &vec![4; net.convs().count()], &Rng::new(3), dtype, &Device::Cpu).unwrap()
    }

    #[test]
    fn gradients_agree_with_differences() {
        for net in ["alex", "vgg"] {
            let lpips = small(net, DType::F64);
            let x = Rng::new(1).uniform(&[1, 3, 32, 35], DType::F64, &Device::Cpu).unwrap();
            let y = lpips.prepare(&Rng::new(2).uniform(&[1, 3, 32, 35], DType::F64, &Device::Cpu).unwrap()).unwrap();
            let error = gradcheck(|x| lpips.between(&lpips.prepare(x)?, &y), &x, 4).unwrap();
            assert!(error < 1e-5, "{net}: {error}");
        }
    }

    #[test]
    fn dead_features_have_no_nan_and_equal_images_no_distance() {
        let lpips = small("alex", DType::F32);
        let flat = Tensor::full(0.4f32, (2, 3, 40, 40), &Device::Cpu).unwrap();
        // biases far below zero: every feature of the flat image is dead
        let dead =
            lpips.weights.map(|name, t| Ok(if name.ends_with("bias") { (t - 50.0)? } else { t.clone() })).unwrap();
        for lpips in [Lpips::new(lpips.net, dead, &[]).unwrap(), lpips] {
            let y = lpips.prepare(&flat).unwrap();
            let (value, gradient) =
                value_and_grad(|x| lpips.between(&lpips.prepare(x)?, &y)?.sum_all(), &flat).unwrap();
            assert_eq!((value.to_scalar::<f32>().unwrap(), top(&gradient)), (0.0, 0.0));
        }
    }

    #[test]
    fn saved_files_and_whole_modules_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let lpips = small("alex", DType::F32);
        lpips.save(folder.path()).unwrap();
        let file = |name: &str| folder.path().join(name);
        let read = open(&[file("alex.safetensors"), file("alexnet.safetensors")]).unwrap();
        let images = |seed| Rng::new(seed).uniform(&[2, 3, 40, 40], DType::F32, &Device::Cpu).unwrap();
        let distance = |l: &Lpips| l.between(&l.prepare(&images(1)).unwrap(), &l.prepare(&images(2)).unwrap()).unwrap();
        assert!(top(&(distance(&lpips) - distance(&read)).unwrap()) < 2e-3);
        // the state dict of the whole module: other names, heads twice, the scaling beside them
        let slices = [(0, 1), (3, 2), (6, 3), (8, 4), (10, 5)];
        let mut module = BTreeMap::from([(
            "scaling_layer.shift".to_string(),
            Tensor::zeros((1, 3, 1, 1), DType::F32, &Device::Cpu).unwrap(),
        )]);
        for (name, tensor) in read.weights.tensors().unwrap() {
            match slices.iter().find(|(i, _)| name.starts_with(&format!("features.{i}."))) {
                Some((_, slice)) => drop(module.insert(name.replace("features", &format!("net.slice{slice}")), tensor)),
                None => {
                    module.insert(name.replacen("lin", "lins.", 1), tensor.clone());
                    module.insert(name, tensor);
                }
            }
        }
        write(&file("whole.safetensors"), &module);
        let whole = open(&[file("whole.safetensors")]).unwrap();
        assert_eq!(top(&(distance(&whole) - distance(&read)).unwrap()), 0.0);
        module.retain(|name, _| {
            !name.starts_with("lin0")
                && !name.starts_with("lin1")
                && !name.starts_with("lin2")
                && !name.starts_with("lin3")
                && !name.starts_with("lin4")
        });
        write(&file("whole.safetensors"), &module);
        let whole = open(&[file("whole.safetensors")]).unwrap();
        assert_eq!(top(&(distance(&whole) - distance(&read)).unwrap()), 0.0);
        let message = |files: &[std::path::PathBuf]| open(files).err().unwrap().message;
        assert!(message(&[file("alex.safetensors")]).contains("expected the convolutions of AlexNet or VGG16"));
        let wrong = message(&[file("alexnet.safetensors"), format!("{GOLDEN}/alex_heads.safetensors").into()]);
        assert!(wrong.contains("heads of [4, 4, 4, 4, 4] channels") && wrong.contains("384"), "{wrong}");
    }

    #[test]
    fn training_changes_the_chosen_part_and_heads_stay_positive() {
        let heads = small("alex", DType::F32).trainable(false, true).unwrap();
        let params = heads.params();
        assert_eq!(params.len(), 5);
        params[0]
            .1
            .set(&Tensor::new(&[-1f32, 0.0, 1.0, 2.0], &Device::Cpu).unwrap().reshape((1, 4, 1, 1)).unwrap())
            .unwrap();
        heads.clamp_heads().unwrap();
        assert_eq!(heads.heads[0].flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0, 1.0, 2.0]);
        assert_eq!(heads.trainable(true, false).unwrap().params().len(), 10);
    }

    #[test]
    fn mistakes_are_named() {
        let lpips = small("alex", DType::F32);
        let flat = |value: f32, side: usize| Tensor::full(value, (1, 3, side, side), &Device::Cpu).unwrap();
        let message = |x: &Tensor| lpips.prepare(x).err().unwrap().message;
        assert!(message(&flat(0.5, 30)).contains("at least 31 pixels a side for alex, got 30 x 30"));
        assert!(lpips.prepare(&flat(0.5, 31)).is_ok());
        assert!(message(&flat(-0.5, 64)).contains("lie in [0, 1], got values from -0.500"));
        assert!(message(&flat(0.5, 64).narrow(1, 0, 1).unwrap()).contains("[n, 3, height, width], got [1, 1, 64, 64]"));
        assert!(Net::named("squeeze").err().unwrap().message.contains("\"alex\" or \"vgg\""));
        assert_eq!(NETS[1].least(), 16);
    }
}
