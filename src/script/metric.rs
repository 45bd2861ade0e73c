//! Chapter `metric`: diversity, and means with standard errors.

use super::*;
use crate::metric::Estimate;
use crate::metric::pairwise::{self as pairs, Distance as Measure};
use crate::tensor::{Tensor, show};
use std::fmt;

/// A distance between images as scripts hold it.
#[derive(Clone)]
pub struct Distance {
    name: &'static str,
    measure: Arc<dyn Measure>,
}

impl Distance {
    pub fn new(name: &'static str, measure: impl Measure + 'static) -> Self {
        Self { name, measure: Arc::new(measure) }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(..)", self.name)
    }
}

crate::script_value!(Distance, "a distance such as `pixel_distance()`");

fn as_map(estimate: Estimate) -> Map {
    let Estimate { mean, error, count } = estimate;
    [("mean".into(), mean.into()), ("error".into(), error.into()), ("count".into(), Dynamic::from(count as i64))].into()
}

/// Groups given as an array of batches, or as one tensor `[groups, n, ..]`.
fn groups(value: Dynamic) -> Result<Vec<Tensor>> {
    if let Some(all) = value.read_lock::<Tensor>() {
        return (0..all.dims().first().copied().unwrap_or(0)).map(|i| core(all.get(i))).collect();
    }
    option::list(option::convert(value, "pairwise: groups")?, "pairwise: groups")
}

/// Measures of images, and means with standard errors.
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
