//! Within-group diversity: the mean distance over all pairs of a group, for any distance.

use amscript_base::progress::Progress;
use amscript_base::{bail, error::Result, memory};
use amscript_tensor::array::norm;
use amscript_tensor::{D, DType, Tensor};

/// A distance between images, as a preparation done once per image and a distance between prepared rows.
pub trait Distance: Send + Sync {
    /// `[n, ..]` images to features, each `[n, ..]`.
    fn prepare(&self, images: &Tensor) -> Result<Vec<Tensor>>;

    /// Distances `[n]` between rows of features.
    fn between(&self, a: &[Tensor], b: &[Tensor]) -> Result<Tensor>;
}

/// Root mean square difference of images resized to `side` x `side`.
pub struct Pixels {
    pub side: usize,
}

impl Distance for Pixels {
    fn prepare(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let Ok((n, channels, height, width)) = images.dims4() else {
            bail!(Shape, "pixel_distance: images must be [n, channels, height, width], got {:?}", images.dims())
        };
        let side = self.side;
        if side == 0 || height % side != 0 || width % side != 0 {
            bail!(Value, "pixel_distance: side must divide the image's {height} x {width}, got {side}");
        }
        let shape = [n, channels, side, height / side, side, width / side];
        let blocks = images.to_dtype(DType::F32)?.reshape(shape.as_slice())?;
        Ok(vec![blocks.mean(5)?.mean(3)?.flatten_from(1)?])
    }

    fn between(&self, a: &[Tensor], b: &[Tensor]) -> Result<Tensor> {
        let difference = (&a[0] - &b[0])?;
        norm(&difference, &[1])? * (1.0 / (difference.dim(1)? as f64).sqrt())
    }
}

/// One minus the cosine of feature vectors `[n, features]`.
pub struct Features<F>(pub F);

impl<F: Fn(&Tensor) -> Result<Tensor> + Send + Sync> Distance for Features<F> {
    fn prepare(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let features = (self.0)(images)?;
        if features.rank() != 2 || features.dim(0)? != images.dim(0)? {
            let (n, got) = (images.dim(0)?, features.dims());
            bail!(Shape, "feature_distance: features must be [{n}, features], got {got:?}");
        }
        let norm = features.sqr()?.sum_keepdim(1)?.sqrt()?;
        Ok(vec![features.broadcast_div(&norm)?])
    }

    fn between(&self, a: &[Tensor], b: &[Tensor]) -> Result<Tensor> {
        1.0 - (&a[0] * &b[0])?.sum(D::Minus1)?
    }
}

/// A distance given as a function of two batches.
pub struct Between<F>(pub F);

impl<F: Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync> Distance for Between<F> {
    fn prepare(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![images.clone()])
    }

    fn between(&self, a: &[Tensor], b: &[Tensor]) -> Result<Tensor> {
        let (n, distances) = (a[0].dim(0)?, (self.0)(&a[0], &b[0])?);
        if distances.dims() != [n] {
            bail!(Shape, "distance: must give [{n}] numbers, got {:?}", distances.dims());
        }
        Ok(distances)
    }
}

/// Images prepared at once.
const IMAGES: usize = 16;
/// Numbers of features compared at once, about.
const NUMBERS: usize = 1 << 24;

/// Distances `[n]` between the images of two batches, row by row; differentiable where the distance is.
pub fn between(distance: &dyn Distance, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!(Shape, "between: both batches must have one shape, got {:?} and {:?}", a.dims(), b.dims());
    }
    distance.between(&distance.prepare(a)?, &distance.prepare(b)?)
}

/// Mean distance over the pairs of each group `[n, ..]`, `n >= 2`: `[groups]`. Images and pairs are taken in batches.
pub fn pairwise(distance: &dyn Distance, groups: &[Tensor]) -> Result<Tensor> {
    let progress = Progress::new("pairs of images", 0, groups.len());
    let means = groups.iter().enumerate().map(|(i, group)| {
        progress.tick(i);
        let n = group.dims().first().copied().unwrap_or(0);
        if n < 2 {
            bail!(Shape, "pairwise: each group must hold at least two images, got {:?} in group {i}", group.dims());
        }
        let features = prepared(distance, &group.constant())?;
        let numbers: usize = features.iter().map(|x| x.elem_count() / n).sum();
        let all = n.checked_mul(n - 1).and_then(|twice| memory::bytes(&[twice / 2], size_of::<f32>()));
        memory::room(all, || format!("pairwise: distances of the pairs of {n} images"))?;
        let mut pairs = (0..n as u32).flat_map(|a| (a + 1..n as u32).map(move |b| (a, b)));
        let next = || Some(pairs.by_ref().take((NUMBERS / numbers.max(1)).max(1)).unzip());
        let batches = std::iter::from_fn(next).take_while(|(first, _): &(Vec<u32>, Vec<u32>)| !first.is_empty());
        let batches = batches.map(|(first, second)| {
            let rows = |indices: Vec<u32>| -> Result<Vec<Tensor>> {
                let indices = Tensor::new(indices, group.device())?;
                features.iter().map(|x| x.index_select(&indices, 0)).collect()
            };
            distance.between(&rows(first)?, &rows(second)?)?.to_dtype(DType::F32)
        });
        Tensor::cat(&batches.collect::<Result<Vec<_>>>()?, 0)?.mean(0)
    });
    let means = means.collect::<Result<Vec<_>>>()?;
    if means.is_empty() {
        bail!(Value, "pairwise: needs at least one group, got none");
    }
    Tensor::stack(&means, 0)
}

/// The features of a group, made of a few images at a time.
fn prepared(distance: &dyn Distance, group: &Tensor) -> Result<Vec<Tensor>> {
    let n = group.dim(0)?;
    let batches = (0..n).step_by(IMAGES).map(|i| distance.prepare(&group.narrow(0, i, IMAGES.min(n - i))?));
    let batches = batches.collect::<Result<Vec<_>>>()?;
    let slots = batches.first().map_or(0, Vec::len);
    (0..slots).map(|slot| Tensor::cat(&batches.iter().map(|b| &b[slot]).collect::<Vec<_>>(), 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Device;

    fn flat(values: &[f32]) -> Tensor {
        let images: Vec<f32> = values.iter().flat_map(|&v| [v; 3 * 16]).collect();
        Tensor::from_vec(images, (values.len(), 3, 4, 4), &Device::Cpu).unwrap()
    }

    #[test]
    fn flat_images_differ_by_their_value() {
        let groups = [flat(&[0.0, 0.0]), flat(&[0.0, 0.3, 0.6])];
        let got = pairwise(&Pixels { side: 2 }, &groups).unwrap().to_vec1::<f32>().unwrap();
        assert!(got[0] == 0.0 && (got[1] - 0.4).abs() < 1e-6, "{got:?}");
    }

    #[test]
    fn pixels_average_blocks() {
        let image = Tensor::arange(0f32, 16.0, &Device::Cpu).unwrap().reshape((1, 1, 4, 4)).unwrap();
        let got = Pixels { side: 2 }.prepare(&image).unwrap();
        assert_eq!(got[0].to_vec2::<f32>().unwrap(), [[2.5, 4.5, 10.5, 12.5]]);
    }

    #[test]
    fn cosines_of_features() {
        let features = Features(|x: &Tensor| Ok(x.clone()));
        let group = Tensor::new(&[[1f32, 0.0], [0.0, 2.0], [3.0, 0.0]], &Device::Cpu).unwrap();
        let got = pairwise(&features, &[group]).unwrap().to_vec1::<f32>().unwrap();
        assert!((got[0] - 2.0 / 3.0).abs() < 1e-6, "{got:?}");
    }

    #[test]
    fn groups_of_more_than_a_batch() {
        let values: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let got = pairwise(&Pixels { side: 1 }, &[flat(&values)]).unwrap().to_vec1::<f32>().unwrap();
        assert!((got[0] - 41.0 / 3.0).abs() < 1e-4, "{got:?}"); // mean |i - j| of n numbers in a row: (n + 1) / 3
    }

    #[test]
    fn mistakes_are_named() {
        let message = |d: &dyn Distance, g: &[Tensor]| pairwise(d, g).unwrap_err().message;
        assert!(message(&Pixels { side: 2 }, &[flat(&[0.0])]).contains("group 0"));
        assert!(message(&Pixels { side: 3 }, &[flat(&[0.0, 1.0])]).contains("got 3"));
        assert!(message(&Pixels { side: 2 }, &[]).contains("none"));
        let whole = Between(|a: &Tensor, _: &Tensor| Ok(a.clone()));
        assert!(message(&whole, &[flat(&[0.0, 1.0])]).contains("must give [1] numbers"));
    }
}
