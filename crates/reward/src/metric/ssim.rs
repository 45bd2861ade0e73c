//! SSIM and MS-SSIM (Wang et al., 2003) as pytorch-msssim 1.0 computes them, differentiable.

use super::check_images;
use super::pairwise::Distance;
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::op::{avg_pool2d, conv2d};
use amscript_tensor::{D, Tensor};

/// Exponents of the levels, the finest first.
const WEIGHTS: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];

/// Deviation of the Gaussian window, in pixels.
const SIGMA: f64 = 1.5;

/// Sizes of the comparison of images in `[0, 1]`.
#[derive(Clone, Copy, Debug)]
pub struct Ssim {
    /// Taps of the Gaussian window; odd.
    pub window: usize,
    /// Scales of MS-SSIM, 1 to 5; each halves the image.
    pub levels: usize,
}

impl Default for Ssim {
    fn default() -> Self {
        Self { window: 11, levels: WEIGHTS.len() }
    }
}

impl Ssim {
    /// Refuses pairs that differ in shape or are smaller than `least`.
    fn check(&self, place: &str, a: &Tensor, b: &Tensor, least: usize) -> Result<()> {
        if self.window.is_multiple_of(2) {
            bail!(Value, "{place}: `win_size` must be odd, got {}", self.window);
        }
        if a.dims() != b.dims() {
            bail!(Shape, "{place}: both sides must have one shape, got {:?} and {:?}", a.dims(), b.dims());
        }
        check_images(place, a, [0.0, 1.0])?;
        check_images(place, b, [0.0, 1.0])?;
        let (_, _, h, w) = a.dims4()?;
        if h.min(w) < least {
            bail!(Shape, "{place}: with `win_size` {} images must be at least {least} pixels a side, got {h} x {w}", self.window;
                hint: "take a smaller window (`win_size: 3`), fewer `levels`, or larger images");
        }
        Ok(())
    }

    /// Structural similarity `[n]` of images `[n, 3, h, w]`, at most 1.
    pub fn ssim(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.check("ssim", a, b, self.window)?;
        self.statistics(a, &b.to_dtype(a.dtype())?)?.0.mean(1)
    }

    /// The shorter side that MS-SSIM needs: the window must fit into the coarsest level with a pixel to spare.
    pub fn least(&self) -> usize {
        (self.window - 1) * (1 << (self.levels - 1)) + 1
    }

    /// Multi-scale structural similarity `[n]`, in `[0, 1]`: a product over levels of powers, negative factors as 0.
    ///
    /// Five levels have the published exponents; fewer have the first of them, scaled to sum to 1.
    pub fn ms_ssim(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        if !(1..=WEIGHTS.len()).contains(&self.levels) {
            bail!(Value, "ms_ssim: `levels` must be 1 to {}, got {}", WEIGHTS.len(), self.levels);
        }
        self.check("ms_ssim", a, b, self.least())?;
        let weights = &WEIGHTS[..self.levels];
        let sum = if self.levels == WEIGHTS.len() { 1.0 } else { weights.iter().sum() };
        let (mut a, mut b) = (a.clone(), b.to_dtype(a.dtype())?);
        let mut product: Option<Tensor> = None;
        for (level, weight) in weights.iter().enumerate() {
            let (whole, contrast) = self.statistics(&a, &b)?;
            let last = level + 1 == self.levels;
            let factor = power(if last { &whole } else { &contrast }, weight / sum)?;
            product = Some(product.map_or(Ok(factor.clone()), |p| p * &factor)?);
            if !last {
                let odd = [a.dim(2)? % 2, a.dim(3)? % 2];
                (a, b) = (avg_pool2d(&a, 2, odd)?, avg_pool2d(&b, 2, odd)?);
            }
        }
        match product {
            Some(product) => Ok(product.mean(1)?),
            None => bail!(Internal, "ms_ssim: no levels"),
        }
    }

    /// Means over pixels of luminance times contrast, and of contrast alone: `[n, channels]` each.
    fn statistics(&self, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
        let (c1, c2) = (0.01f64.powi(2), 0.03f64.powi(2));
        let (n, c, ..) = a.dims4()?;
        let all = Tensor::cat(&[a, b, &a.sqr()?, &b.sqr()?, &(a * b)?], 0)?.flatten(0, 1)?.unsqueeze(1)?;
        let taps = Tensor::new(gaussian(self.window), a.device())?.to_dtype(a.dtype())?;
        let all = conv2d(&all, &taps.reshape((1, 1, self.window, 1))?, None, 1, 0)?;
        let all = conv2d(&all, &taps.reshape((1, 1, 1, self.window))?, None, 1, 0)?;
        let all = all.reshape((5, n, c, ()))?;
        let [x, y, xx, yy, xy] = [all.get(0)?, all.get(1)?, all.get(2)?, all.get(3)?, all.get(4)?];
        let (x2, y2, product) = (x.sqr()?, y.sqr()?, (&x * &y)?);
        let spread = ((xx - &x2)? + (yy - &y2)?)?;
        let contrast = (((xy - &product)? * 2.0)? + c2)?.div(&(spread + c2)?)?;
        let luminance = ((product * 2.0)? + c1)?.div(&((x2 + y2)? + c1)?)?;
        Ok(((luminance * &contrast)?.mean(D::Minus1)?, contrast.mean(D::Minus1)?))
    }
}

/// Normalised Gaussian taps.
fn gaussian(count: usize) -> Vec<f64> {
    let centre = (count / 2) as f64;
    let taps: Vec<f64> = (0..count).map(|i| (-(i as f64 - centre).powi(2) / (2.0 * SIGMA * SIGMA)).exp()).collect();
    let sum: f64 = taps.iter().sum();
    taps.into_iter().map(|tap| tap / sum).collect()
}

/// `max(x, 0)^e`; where `x` is at most 1e-8 both value and gradient are 0, as the power's slope is infinite at 0.
fn power(x: &Tensor, e: f64) -> Result<Tensor> {
    let clear = x.constant().gt(1e-8)?.to_dtype(x.dtype())?;
    let base = ((x * &clear)? + clear.affine(-1.0, 1.0)?)?;
    base.powf(e)? * clear
}

/// One minus MS-SSIM.
impl Distance for Ssim {
    fn prepare(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![images.clone()])
    }

    fn between(&self, a: &[Tensor], b: &[Tensor]) -> Result<Tensor> {
        self.ms_ssim(&a[0], &b[0])?.affine(-1.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::grad::{gradcheck, value_and_grad};
    use amscript_tensor::{DType, Device, Rng};

    fn uniform(shape: &[usize], seed: u64) -> Tensor {
        Rng::new(seed).uniform(shape, DType::F64, &Device::Cpu).unwrap()
    }

    fn top(x: &Tensor) -> f64 {
        x.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn values_and_gradients_are_pytorch_msssims() {
        let g = amscript_tensor::file::load("../../tests/golden/ms_ssim/expected.safetensors", &Device::Cpu).unwrap();
        for case in 0..2 {
            let of = |name: &str| &g[&format!("{name}.{case}.{}", "x")[..]];
            let (x, y) = (of("in"), &g[&format!("in.{case}.y")]);
            let ssim = Ssim::default().ssim(x, y).unwrap();
            let (sum, gradient) = value_and_grad(|x| Ssim::default().ms_ssim(x, y)?.sum_all(), x).unwrap();
            let errors = [
                top(&(ssim - &g[&format!("out.{case}.ssim")]).unwrap()),
                top(&(sum.reshape(1).unwrap() - &g[&format!("out.{case}.ms_ssim")]).unwrap()),
            ];
            assert!(errors.iter().all(|e| *e < 1e-5), "{errors:?}");
            let expected = &g[&format!("out.{case}.grad_x")];
            let error = top(&(gradient - expected).unwrap()) / top(expected);
            assert!(error < 1e-3, "{error}");
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        let (x, y) = (uniform(&[2, 3, 21, 19], 1), uniform(&[2, 3, 21, 19], 2));
        let near = ((&x * 0.6).unwrap() + (&y * 0.4).unwrap()).unwrap();
        let small = Ssim { window: 5, levels: 3 };
        assert!(gradcheck(|x| Ssim::default().ssim(x, &near), &x, 3).unwrap() < 1e-6);
        assert!(gradcheck(|x| small.ms_ssim(x, &near), &x, 3).unwrap() < 1e-6);
    }

    #[test]
    fn opposite_images_have_no_nan() {
        let x = uniform(&[1, 3, 40, 40], 1);
        let opposite = x.affine(-1.0, 1.0).unwrap();
        let small = Ssim { window: 3, levels: 5 };
        for y in [&opposite, &x, &x.zeros_like().unwrap()] {
            let (value, gradient) = value_and_grad(|x| small.ms_ssim(x, y)?.sum_all(), &x).unwrap();
            assert!(top(&gradient).is_finite() && value.to_scalar::<f64>().unwrap().is_finite());
        }
        assert!((small.ms_ssim(&x, &x).unwrap().to_vec1::<f64>().unwrap()[0] - 1.0).abs() < 1e-12);
        assert_eq!(small.ms_ssim(&x, &opposite).unwrap().to_vec1::<f64>().unwrap(), [0.0]);
    }

    #[test]
    fn mistakes_are_named() {
        let x = uniform(&[1, 3, 160, 170], 1);
        let message = |s: Ssim, a: &Tensor, b: &Tensor| s.ms_ssim(a, b).unwrap_err().message;
        assert!(message(Ssim::default(), &x, &x).contains("at least 161 pixels a side, got 160 x 170"));
        assert!(message(Ssim { window: 4, levels: 5 }, &x, &x).contains("odd"));
        assert!(message(Ssim { window: 3, levels: 6 }, &x, &x).contains("1 to 5, got 6"));
        let far = (&x * 255.0).unwrap();
        let error = Ssim::default().ssim(&x, &far).unwrap_err();
        assert!(error.message.contains("lie in [0, 1]") && error.hint.unwrap().contains("x / 255"));
        assert!(message(Ssim::default(), &x, &x.narrow(2, 0, 9).unwrap()).contains("one shape"));
        assert_eq!(Ssim { window: 3, levels: 5 }.least(), 33);
    }
}
