//! Within-group diversity: the mean distance over all pairs of a group, for any distance.

use crate::{
    bail,
    error::Result,
    tensor::{D, DType, Tensor},
};

/// A distance between images, as a preparation done once per image and a distance between prepared rows.
pub trait Distance: Send + Sync {
    /// `[n, ..]` images to `[n, ..]` features.
    fn prepare(&self, images: &Tensor) -> Result<Tensor>;

    /// Distances `[n]` between rows of features.
    fn between(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;
}

/// Root mean square difference of images resized to `side` x `side`.
pub struct Pixels {
    pub side: usize,
}

impl Distance for Pixels {
    fn prepare(&self, images: &Tensor) -> Result<Tensor> {
        let Ok((n, channels, height, width)) = images.dims4() else {
            bail!(Shape, "pixel_distance: images must be [n, channels, height, width], got {:?}", images.dims())
        };
        let side = self.side;
        if side == 0 || height % side != 0 || width % side != 0 {
            bail!(Value, "pixel_distance: side must divide the image's {height} x {width}, got {side}");
        }
        let shape = [n, channels, side, height / side, side, width / side];
        let blocks = images.to_dtype(DType::F32)?.reshape(shape.as_slice())?;
        Ok(blocks.mean(5)?.mean(3)?.flatten_from(1)?)
    }

    fn between(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok((a - b)?.sqr()?.mean(D::Minus1)?.sqrt()?)
    }
}

/// One minus the cosine of feature vectors `[n, features]`.
pub struct Features<F>(pub F);

impl<F: Fn(&Tensor) -> Result<Tensor> + Send + Sync> Distance for Features<F> {
    fn prepare(&self, images: &Tensor) -> Result<Tensor> {
        let features = (self.0)(images)?;
        if features.rank() != 2 || features.dim(0)? != images.dim(0)? {
            let (n, got) = (images.dim(0)?, features.dims());
            bail!(Shape, "feature_distance: features must be [{n}, features], got {got:?}");
        }
        let norm = features.sqr()?.sum_keepdim(1)?.sqrt()?;
        Ok(features.broadcast_div(&norm)?)
    }

    fn between(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok((1.0 - (a * b)?.sum(D::Minus1)?)?)
    }
}

/// A distance given as a function of two batches.
pub struct Between<F>(pub F);

impl<F: Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync> Distance for Between<F> {
    fn prepare(&self, images: &Tensor) -> Result<Tensor> {
        Ok(images.clone())
    }

    fn between(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let distances = (self.0)(a, b)?;
        if distances.dims() != [a.dim(0)?] {
            bail!(Shape, "distance: must give [{}] numbers, got {:?}", a.dim(0)?, distances.dims());
        }
        Ok(distances)
    }
}

/// Mean distance over the pairs of each group `[n, ..]`, `n >= 2`: `[groups]`.
pub fn pairwise(distance: &dyn Distance, groups: &[Tensor]) -> Result<Tensor> {
    let means = groups.iter().enumerate().map(|(i, group)| {
        let n = group.dims().first().copied().unwrap_or(0);
        if n < 2 {
            bail!(Shape, "pairwise: each group must hold at least two images, got {:?} in group {i}", group.dims());
        }
        let features = distance.prepare(&group.detach())?;
        let (first, second): (Vec<u32>, Vec<u32>) =
            (0..n as u32).flat_map(|a| (a + 1..n as u32).map(move |b| (a, b))).unzip();
        let rows = |indices: Vec<u32>| features.index_select(&Tensor::new(indices, features.device())?, 0);
        Ok(distance.between(&rows(first)?, &rows(second)?)?.mean(0)?.to_dtype(DType::F32)?)
    });
    let means = means.collect::<Result<Vec<_>>>()?;
    if means.is_empty() {
        bail!(Value, "pairwise: needs at least one group, got none");
    }
    Ok(Tensor::stack(&means, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Device;

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
        assert_eq!(got.to_vec2::<f32>().unwrap(), [[2.5, 4.5, 10.5, 12.5]]);
    }

    #[test]
    fn cosines_of_features() {
        let features = Features(|x: &Tensor| Ok(x.clone()));
        let group = Tensor::new(&[[1f32, 0.0], [0.0, 2.0], [3.0, 0.0]], &Device::Cpu).unwrap();
        let got = pairwise(&features, &[group]).unwrap().to_vec1::<f32>().unwrap();
        assert!((got[0] - 2.0 / 3.0).abs() < 1e-6, "{got:?}");
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
