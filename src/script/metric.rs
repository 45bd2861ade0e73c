//! Chapter `metric`: distances of images, diversity, sets of features, and means with standard errors.

use super::*;
use crate::options;
use amscript_align::optim::Params;
use amscript_base::bail;
use amscript_nn::archive::Archive;
use amscript_nn::source::Folder;
use amscript_reward::metric::frechet;
use amscript_reward::metric::lpips::{Lpips, Net};
use amscript_reward::metric::neighbours::{self, Manifold};
use amscript_reward::metric::pairwise::{self as pairs, Distance as Measure};
use amscript_reward::metric::ssim::Ssim;
use amscript_run::Estimate;
use amscript_tensor::{DType, Rng, Tensor, show};
use std::fmt;

/// A distance between images as scripts hold it.
#[derive(Clone)]
pub struct Distance {
    name: String,
    measure: Arc<dyn Measure>,
    /// The same, where it is a network.
    network: Option<Arc<Lpips>>,
}

impl Distance {
    pub fn new(name: &str, measure: impl Measure + 'static) -> Self {
        Self { name: format!("{name}(..)"), measure: Arc::new(measure), network: None }
    }

    fn of(network: Lpips) -> Self {
        let (name, network) = (network.describe(), Arc::new(network));
        Self { name, measure: network.clone(), network: Some(network) }
    }

    fn network(&self, function: &str) -> Result<&Lpips> {
        match &self.network {
            Some(network) => Ok(network),
            None => bail!(Value, "{function}: {self} is no network"; hint: "take `lpips(..)` or `lpips_net(..)`"),
        }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

crate::script_value!(Distance, "a distance such as `pixel_distance()`");

options! {
    /// Where LPIPS is read from and how images come.
    pub struct LpipsOptions {
        /// The file of the trunk, if not in the folder or not the only one there.
        trunk: Option<String> = None,
        /// The file of the heads, if not beside the trunk.
        heads: Option<String> = None,
        /// `alex` or `vgg`, when both lie in the folder.
        net: Option<String> = None,
        /// Range of the images: `0..1` or `-1..1`.
        range: String = "0..1".to_string(),
    }
}

impl LpipsOptions {
    /// Whether images are in `[-1, 1]`.
    fn signed(&self) -> Result<bool> {
        match self.range.as_str() {
            "0..1" => Ok(false),
            "-1..1" => Ok(true),
            other => bail!(Value, "lpips: option `range`: expected \"0..1\" or \"-1..1\", got \"{other}\""),
        }
    }
}

/// Whether the trunk and the heads are trained.
fn parts(part: &str) -> Result<(bool, bool)> {
    match part {
        "trunk" => Ok((true, false)),
        "heads" => Ok((false, true)),
        "all" => Ok((true, true)),
        _ => bail!(Value, "trainable: expected \"trunk\", \"heads\" or \"all\", got \"{part}\""),
    }
}

options! {
    /// Sizes of a random LPIPS.
    pub struct LpipsNetOptions {
        /// Channels of each convolution, 5 of AlexNet or 13 of VGG16.
        channels: Vec<usize> = vec![16, 32, 48, 48, 48],
        /// Seed of the weights.
        seed: u64 = 0,
    }
}

options! {
    /// Sizes of the comparison.
    pub struct SsimOptions {
        /// Taps of the Gaussian window, odd.
        win_size: usize = Ssim::default().window,
        /// Scales of `ms_ssim`, 1 to 5; with fewer than 5 their weights are scaled to sum to 1.
        levels: usize = Ssim::default().levels,
    }
}

impl SsimOptions {
    fn read(function: &str, options: Map) -> Result<Ssim> {
        let options = Self::parse(function, options)?;
        Ok(Ssim { window: options.win_size, levels: options.levels })
    }
}

fn as_map(estimate: Estimate) -> Map {
    let Estimate { mean, error, count } = estimate;
    [("mean".into(), mean.into()), ("error".into(), error.into()), ("count".into(), Dynamic::from(count as i64))].into()
}

/// Groups given as an array of batches, or as one tensor `[groups, n, ..]`.
fn groups(value: Dynamic) -> Result<Vec<Tensor>> {
    if let Some(all) = value.read_lock::<Tensor>() {
        return (0..all.dims().first().copied().unwrap_or(0)).map(|i| all.get(i)).collect();
    }
    option::list(option::convert(value, "pairwise: groups")?, "pairwise: groups")
}

fn both(real: &Tensor, fake: &Tensor, k: i64) -> Result<Manifold> {
    neighbours::manifold(real, fake, option::convert(k.into(), "k")?)
}

/// The weight files of a folder or name, or a file and those beside it; with other files for trunk or heads in their place.
fn archives(name: &str, options: &LpipsOptions, session: &Session) -> Result<Vec<Archive>> {
    let (folder, file) = reward::place(name, session, &session.sources())?;
    let open = |name: &str| match folder.has(name) {
        true => folder.archive(name),
        false => Archive::open(&session.readable(name)?),
    };
    let weights = |folder: &Folder| -> Vec<String> {
        let ends = |name: &String| [".safetensors", ".pth", ".pt", ".bin"].iter().any(|end| name.ends_with(end));
        folder.names().into_iter().filter(ends).collect()
    };
    let mut names: Vec<String> = match (options.trunk.clone().or(file), &options.heads) {
        (Some(trunk), Some(_)) => vec![trunk],
        (Some(trunk), None) => {
            let heads =
                |name: &String| folder.archive(name).is_ok_and(|a| a.entries().keys().all(|k| k.starts_with("lin")));
            let beside = weights(&folder).into_iter().filter(|name| *name != trunk && heads(name));
            std::iter::once(trunk.clone()).chain(beside).collect()
        }
        (None, _) => weights(&folder),
    };
    if let Some(heads) = &options.heads {
        names.retain(|name| name != heads);
        names.insert(0, heads.clone());
    }
    names.iter().map(|name| open(name)).collect()
}

/// Measures of images: distances (`lpips`, `ms_ssim_distance`, ..), diversity, two sets of features against each other, and
/// means with standard errors.
#[export_module(manifest)]
pub mod metric {
    use super::*;

    pub type Distance = super::Distance;

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_distance(distance: &mut Distance) -> String {
        distance.to_string()
    }

    /// The root mean square difference of images averaged down to 16 x 16.
    ///
    /// ```rhai
    /// pairwise(pixel_distance(), zeros([2, 3, 3, 64, 64]))   //=> tensor([0.0, 0.0])
    /// ```
    pub fn pixel_distance() -> Distance {
        Distance::new("pixel_distance", pairs::Pixels { side: 16 })
    }

    /// One minus the cosine of feature vectors `[n, features]` that a closure makes of images.
    ///
    /// ```rhai
    /// let means = feature_distance(|images| images.mean([2, 3]));
    /// pairwise(means, [shapes(4, rng(0)).images]).item() > 0   //=> true
    /// ```
    pub fn feature_distance(context: NativeCallContext, features: FnPtr) -> Distance {
        let callback = Callback::new(&context, "feature_distance", features);
        Distance::new("feature_distance", pairs::Features(move |x: &Tensor| callback.call((x.clone(),))))
    }

    /// A distance from a closure that takes two batches and gives one number per pair.
    ///
    /// ```rhai
    /// let apart = distance(|a, b| (a - b).abs().mean([1]));
    /// pairwise(apart, [tensor([[0.0], [1.0], [2.0]])]).item()   //=> 1.33333
    /// ```
    pub fn distance(context: NativeCallContext, between: FnPtr) -> Distance {
        let callback = Callback::new(&context, "distance", between);
        Distance::new("distance", pairs::Between(move |a: &Tensor, b: &Tensor| callback.call((a.clone(), b.clone()))))
    }

    /// LPIPS (arXiv:1801.03924, version 0.1) by name, folder or file: differences of a network's features, learnt from people's
    /// choices; larger is further.
    ///
    /// A folder holds torchvision's trunk (`alexnet-owt-7be5be79.pth` or `vgg16-397923af.pth`) and LPIPS's heads (`alex.pth` or
    /// `vgg.pth`, in PyTorch's older form as published), or the same as safetensors; a state dict of the whole module will do.
    /// `tiny/lpips` is trained on the shapes world. Images are `[n, 3, height, width]` in `[0, 1]` like everywhere.
    ///
    /// ```rhai
    /// let d = lpips("tiny/lpips");
    /// let images = shapes(2, rng(0)).images;
    /// d.between(images, images)                                 //=> tensor([0.0, 0.0])
    /// d.between(images[[[0]]], images[[[1]]]).item() > 0.01         //=> true
    /// d.between(images * 2 - 1, images)                         //=> error: images must lie in [0, 1]
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn lpips(context: NativeCallContext, name: &str, options: Map) -> RhaiResultOf<Distance> {
        let (options, session) = (LpipsOptions::parse("lpips", options)?, Session::of(&context));
        let (signed, files) = (options.signed()?, archives(name, &options, &session)?);
        let mut network = Lpips::open(files, options.net.as_deref(), session.device())?;
        network.signed = signed;
        Ok(Distance::of(network))
    }

    /// A random LPIPS, to be trained and saved: a trunk shaped like AlexNet (`alex`) or VGG16 (`vgg`), heads that weigh all
    /// channels alike.
    ///
    /// ```rhai
    /// let net = lpips_net("alex", #{ channels: [4, 4, 4, 4, 4] });
    /// adamw(net.trainable("heads").params())   //=> adamw(5 tensors ..
    /// lpips_net("alex", #{ channels: [4, 4] })         //=> error: `channels` of alex must be 5 numbers above 0, got [4, 4]
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn lpips_net(context: NativeCallContext, net: &str, options: Map) -> RhaiResultOf<Distance> {
        let options = LpipsNetOptions::parse("lpips_net", options)?;
        let (net, rng) = (Net::named(net)?, Rng::new(options.seed));
        let device = Session::of(&context).device().clone();
        Ok(Distance::of(Lpips::random(net, &options.channels, &rng, DType::F32, &device)?))
    }

    /// The features of LPIPS's trunk at its five taps, `[n, channels, height, width]` each.
    ///
    /// ```rhai
    /// let net = lpips_net("alex", #{ channels: [4, 4, 4, 4, 8] });
    /// net.taps(zeros([2, 3, 64, 64]))[4].shape   //=> [2, 8, 3, 3]
    /// pixel_distance().taps(zeros([1, 3, 64, 64]))   //=> error: is no network
    /// ```
    #[rhai_fn(return_raw)]
    pub fn taps(d: Distance, images: Tensor) -> RhaiResultOf<Array> {
        Ok(d.network("taps")?.taps(&images)?.into_iter().map(Dynamic::from).collect())
    }

    /// The same LPIPS with trainable weights: those of the `"trunk"`, the `"heads"`, or `"all"`.
    ///
    /// ```rhai
    /// let net = lpips_net("alex", #{ channels: [4, 4, 4, 4, 4] });
    /// adamw(net.trainable("trunk").params())   //=> adamw(10 tensors ..
    /// net.trainable("tail")                    //=> error: expected "trunk", "heads" or "all", got "tail"
    /// ```
    #[rhai_fn(name = "trainable", return_raw)]
    pub fn trainable_distance(d: Distance, part: &str) -> RhaiResultOf<Distance> {
        let (trunk, heads) = parts(part)?;
        Ok(Distance::of(d.network("trainable")?.trainable(trunk, heads)?))
    }

    /// The trainable tensors of an LPIPS, for an optimizer.
    ///
    /// ```rhai
    /// adamw(lpips_net("alex").params())   //=> error: there must be a trainable tensor
    /// ```
    #[rhai_fn(name = "params", return_raw)]
    pub fn params_of_distance(d: Distance) -> RhaiResultOf<Params> {
        Ok(Params::new(d.network("params")?.params())?)
    }

    /// Sets negative numbers of trainable heads to zero, as LPIPS's authors do after each step, so that no distance is negative.
    ///
    /// ```rhai
    /// let net = lpips_net("alex").trainable("heads");
    /// net.clamp_heads();
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn clamp_heads(d: Distance) -> RhaiResultOf<()> {
        Ok(d.network("clamp_heads")?.clamp_heads()?)
    }

    /// Writes an LPIPS's trunk and heads into a folder of the run that `lpips(folder)` reads.
    ///
    /// ```rhai no_run
    /// lpips_net("alex").save("lpips");
    /// ```
    #[rhai_fn(name = "save", return_raw, volatile)]
    pub fn save_distance(context: NativeCallContext, d: Distance, folder: &str) -> RhaiResultOf<()> {
        Ok(d.network("save")?.save(&Session::of(&context).writable(folder)?)?)
    }

    /// Structural similarity `[n]` of two batches of images in `[0, 1]`: 1 for equal ones. Differentiable.
    ///
    /// ```rhai
    /// let images = shapes(2, rng(0)).images;
    /// ssim(images, images)                                 //=> tensor([1.0, 1.0])
    /// ssim(images, 0.5 * images).max().item() < 0.9        //=> true
    /// ```
    #[rhai_fn(return_raw)]
    pub fn ssim(a: Tensor, b: Tensor, options: Map) -> RhaiResultOf<Tensor> {
        Ok(SsimOptions::read("ssim", options)?.ssim(&a, &b)?)
    }

    /// Multi-scale structural similarity `[n]` of two batches of images in `[0, 1]`: 1 for equal ones. Differentiable.
    ///
    /// As published it takes images of at least 161 pixels a side; smaller ones need a smaller window or fewer levels.
    ///
    /// ```rhai
    /// let images = shapes(2, rng(0)).images;
    /// ms_ssim(images, images, #{ win_size: 3 })   //=> tensor([1.0, 1.0])
    /// ms_ssim(images, images)                     //=> error: must be at least 161 pixels a side, got 64 x 64
    /// ```
    #[rhai_fn(return_raw)]
    pub fn ms_ssim(a: Tensor, b: Tensor, options: Map) -> RhaiResultOf<Tensor> {
        Ok(SsimOptions::read("ms_ssim", options)?.ms_ssim(&a, &b)?)
    }

    /// One minus `ms_ssim`, as a distance.
    ///
    /// ```rhai
    /// let d = ms_ssim_distance(#{ win_size: 3 });
    /// let images = shapes(3, rng(0)).images;
    /// pairwise(d, [images]).item() > 0.05   //=> true
    /// ```
    #[rhai_fn(return_raw)]
    pub fn ms_ssim_distance(options: Map) -> RhaiResultOf<Distance> {
        Ok(Distance::new("ms_ssim_distance", SsimOptions::read("ms_ssim_distance", options)?))
    }

    /// One minus `ms_ssim` as published, of images of at least 161 pixels a side.
    ///
    /// ```rhai
    /// ms_ssim_distance().between(zeros([1, 3, 161, 161]), zeros([1, 3, 161, 161]))   //=> tensor([0.0])
    /// ```
    #[rhai_fn(name = "ms_ssim_distance")]
    pub fn published_ms_ssim_distance() -> Distance {
        Distance::new("ms_ssim_distance", Ssim::default())
    }

    /// Distances `[n]` between the images of two batches, row by row; differentiable where the distance is.
    ///
    /// ```rhai
    /// let zero = zeros([2, 3, 64, 64]);
    /// let one = ones([2, 3, 64, 64]);
    /// pixel_distance().between(zero, one)                    //=> tensor([1.0, 1.0])
    /// pixel_distance().between(zero, zeros([1, 3, 64, 64]))   //=> error: both batches must have one shape
    /// ```
    #[rhai_fn(return_raw)]
    pub fn between(d: Distance, a: Tensor, b: Tensor) -> RhaiResultOf<Tensor> {
        Ok(pairs::between(d.measure.as_ref(), &a, &b)?)
    }

    /// Diversity within groups: the mean distance over all pairs of each, `[groups]`.
    ///
    /// Groups are an array of batches, or a tensor `[groups, n, ..]`; take the images of one prompt as a group.
    ///
    /// ```rhai
    /// let same = zeros([3, 3, 64, 64]);
    /// pairwise(pixel_distance(), [same, shapes(3, rng(0)).images]).to_array()[0]   //=> 0.0
    /// pairwise(pixel_distance(), [zeros([1, 3, 64, 64])])                          //=> error: at least two images
    /// ```
    #[rhai_fn(return_raw)]
    pub fn pairwise(distance: Distance, groups: Dynamic) -> RhaiResultOf<Tensor> {
        Ok(pairs::pairwise(distance.measure.as_ref(), &super::groups(groups)?)?)
    }

    /// `precision`, `recall`, `density` and `coverage` of fake features `[m, d]` with real ones `[n, d]` as the reference, in one pass:
    /// one number for each fake (precision `[m]`, density `[m]`) or real sample (recall `[n]`, coverage `[n]`), whose means they are.
    ///
    /// Balls reach from each sample to its k-th nearest other of the same set (k = 5 is usual). A thousand samples or more of each
    /// give steady numbers. Report-only: they count, so they have no gradient.
    ///
    /// ```rhai
    /// let real = rng(0).normal([60, 4]);
    /// let fake = rng(1).normal([50, 4]);
    /// manifold(real, fake, 5).keys()              //=> ["coverage", "density", "precision", "recall"]
    /// manifold(real, fake, 5).coverage.shape      //=> [60]
    /// manifold(real, fake[[[0, 1, 2]]], 5)        //=> error: each set hold k + 2 samples or more, got k = 5 and 3
    /// ```
    #[rhai_fn(return_raw)]
    pub fn manifold(real: Tensor, fake: Tensor, k: i64) -> RhaiResultOf<Map> {
        let m = both(&real, &fake, k)?;
        let all = [("precision", m.precision), ("recall", m.recall), ("density", m.density), ("coverage", m.coverage)];
        let rows = |values: Vec<f64>| -> Result<Dynamic> {
            Ok(Dynamic::from(Tensor::new(values, real.device())?.to_dtype(DType::F32)?))
        };
        Ok(all.into_iter().map(|(name, values)| Ok((name.into(), rows(values)?))).collect::<Result<Map>>()?)
    }

    /// The share of fake features inside the ball of at least one real one; see `manifold`. Not differentiable.
    ///
    /// ```rhai
    /// let real = rng(0).normal([60, 4]);
    /// precision(real, 0.1 * real, 5)     //=> 1.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn precision(real: Tensor, fake: Tensor, k: i64) -> RhaiResultOf<f64> {
        Ok(Estimate::of(&both(&real, &fake, k)?.precision).mean)
    }

    /// The share of real features inside the ball of at least one fake one; see `manifold`. Not differentiable.
    ///
    /// ```rhai
    /// let real = rng(0).normal([60, 4]);
    /// recall(real, 0.1 * real, 5) < 0.5  //=> true
    /// ```
    #[rhai_fn(return_raw)]
    pub fn recall(real: Tensor, fake: Tensor, k: i64) -> RhaiResultOf<f64> {
        Ok(Estimate::of(&both(&real, &fake, k)?.recall).mean)
    }

    /// The mean number of real balls around a fake feature, over k; about 1 for equal distributions; see `manifold`. Not differentiable.
    ///
    /// ```rhai
    /// let real = rng(0).normal([60, 4]);
    /// density(real, real + 100, 5)       //=> 0.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn density(real: Tensor, fake: Tensor, k: i64) -> RhaiResultOf<f64> {
        Ok(Estimate::of(&both(&real, &fake, k)?.density).mean)
    }

    /// The share of real features whose ball holds a fake one; see `manifold`. Not differentiable.
    ///
    /// ```rhai
    /// let real = rng(0).normal([60, 4]);
    /// coverage(real, real, 5)            //=> 1.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn coverage(real: Tensor, fake: Tensor, k: i64) -> RhaiResultOf<f64> {
        Ok(Estimate::of(&both(&real, &fake, k)?.coverage).mean)
    }

    /// The Frechet distance between two sets of features `[n, d]`, `[m, d]`: FID's formula, whatever the features are.
    ///
    /// The estimate is too large for few samples: compare only numbers from equally many, ten thousand or more of each for long
    /// features. Report-only: it has no gradient.
    ///
    /// ```rhai
    /// let real = rng(0).normal([60, 4]);
    /// (frechet_distance(real, real + 1) - 4).abs() < 0.0001   //=> true
    /// ```
    #[rhai_fn(return_raw)]
    pub fn frechet_distance(real: Tensor, fake: Tensor) -> RhaiResultOf<f64> {
        Ok(frechet::frechet_distance(&real, &fake)?)
    }

    /// The `mean` of numbers, its standard `error`, and their `count`.
    ///
    /// ```rhai
    /// estimate(tensor([1.0, 2.0, 3.0]))   //=> #{"count": 3, "error": 0.57735, "mean": 2.0}
    /// ```
    #[rhai_fn(return_raw)]
    pub fn estimate(values: Tensor) -> RhaiResultOf<Map> {
        Ok(as_map(Estimate::of(&show::values(&values)?)))
    }

    /// The mean change from `before` to `after` of the same items, with its standard error.
    ///
    /// ```rhai
    /// paired(tensor([1.0, 2.0]), tensor([2.0, 3.0])).mean   //=> 1.0
    /// paired(tensor([1.0]), tensor([1.0, 2.0]))             //=> error: needs one value per item
    /// ```
    #[rhai_fn(return_raw)]
    pub fn paired(before: Tensor, after: Tensor) -> RhaiResultOf<Map> {
        Ok(as_map(Estimate::paired(&show::values(&before)?, &show::values(&after)?)?))
    }
}
