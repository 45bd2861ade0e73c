//! Control penalties `f(|u|)`: the optimal control is `u = -(f')^{-1}(|a|) a / |a|` (arXiv:2605.06583, Theorem 3.1).

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::check::read;
use amscript_tensor::grad::value_and_grad;
use amscript_tensor::sample::{norm_per_sample, spread};
use amscript_tensor::{DType, Device, Tensor};
use std::sync::Arc;

/// `f` as a function of a vector of control norms, entry by entry.
pub type PenaltyFn = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// What a penalty takes as the size of a control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Norm {
    /// The Euclidean norm of a sample's latent.
    #[default]
    Sample,
    /// That norm divided by the root of the number of entries.
    Rms,
    /// Every entry's absolute value, on its own.
    Entry,
}

/// An increasing, convex penalty on the norm of the control.
#[derive(Clone)]
pub enum Regularizer {
    /// `f(r) = r^p / p`, `p > 1`.
    Power(f64),
    /// Any `f`, given as a differentiable function of `r`.
    Penalty(Arc<PenaltyFn>),
}

/// Below this norm a control is zero.
const TINY: f64 = 1e-12;
/// Above this norm no control is looked for.
const HUGE: f64 = 1e18;

impl Regularizer {
    /// `f(r) = r^2 / 2`.
    pub fn quadratic() -> Self {
        Regularizer::Power(2.0)
    }

    /// `f(r) = r^p / p`.
    pub fn power(p: f64) -> Result<Self> {
        if !(p > 1.0 && p.is_finite()) {
            bail!(Value, "power: the exponent must be above 1, where the penalty is strictly convex, got {p}");
        }
        Ok(Regularizer::Power(p))
    }

    /// `r^2 / 2`, for which the squared distance from a random target has the right mean.
    pub fn is_quadratic(&self) -> bool {
        matches!(self, Regularizer::Power(2.0))
    }

    /// `f` of a vector of norms, differentiable.
    pub fn value(&self, r: &Tensor) -> Result<Tensor> {
        match self {
            Regularizer::Power(p) => Ok((r.powf(*p)? / *p)?),
            Regularizer::Penalty(f) => f(r),
        }
    }

    /// `max_r (r y - f(r))` of each number: the convex conjugate.
    pub fn conjugate(&self, slopes: &[f64]) -> Result<Vec<f64>> {
        let sizes = self.sizes(slopes)?;
        Ok(slopes.iter().zip(&sizes).zip(self.costs(&sizes)?).map(|((y, r), f)| y * r - f).collect())
    }

    /// What control gains beyond none: the conjugate `+ f(0)`, 0 at 0.
    pub fn gain(&self, slopes: &[f64]) -> Result<Vec<f64>> {
        let none = self.costs(&[0.0])?[0];
        Ok(self.conjugate(slopes)?.into_iter().map(|gain| gain + none).collect())
    }

    fn costs(&self, sizes: &[f64]) -> Result<Vec<f64>> {
        self.value(&Tensor::new(sizes, &Device::Cpu)?)?.constant().to_vec1::<f64>()
    }

    /// [`controls`](Self::controls) with another size of the control.
    pub fn controls_by(&self, adjoints: &[Tensor], norm: Norm) -> Result<Vec<Tensor>> {
        match norm {
            _ if self.is_quadratic() => self.controls(adjoints),
            Norm::Sample => self.controls(adjoints),
            Norm::Rms => {
                let root = |a: &Tensor| (a.elem_count() as f64 / a.dims()[0] as f64).sqrt();
                let scaled = adjoints.iter().map(|a| a / root(a)).collect::<amscript_base::error::Result<Vec<_>>>()?;
                let controls = self.controls(&scaled)?;
                Ok(controls
                    .iter()
                    .zip(adjoints)
                    .map(|(u, a)| u * root(a))
                    .collect::<amscript_base::error::Result<_>>()?)
            }
            Norm::Entry => {
                let flat = |a: &Tensor| a.flatten_all()?.unsqueeze(1);
                let entries = adjoints.iter().map(flat).collect::<amscript_base::error::Result<Vec<_>>>()?;
                let controls = self.controls(&entries)?;
                Ok(controls
                    .iter()
                    .zip(adjoints)
                    .map(|(u, a)| u.reshape(a.dims()))
                    .collect::<amscript_base::error::Result<_>>()?)
            }
        }
    }

    /// The optimal controls for adjoints of one shape, `[batch, ..]`; `|a|` is the norm over all but the batch.
    pub fn controls(&self, adjoints: &[Tensor]) -> Result<Vec<Tensor>> {
        if self.is_quadratic() {
            return adjoints.iter().map(Tensor::neg).collect::<amscript_base::error::Result<_>>();
        }
        let norms = adjoints.iter().map(|a| norm_per_sample(&a.to_dtype(DType::F64)?)).collect::<Result<Vec<_>>>()?;
        let norms = if norms.is_empty() { Vec::new() } else { read(&Tensor::cat(&norms, 0)?)? };
        // Zero adjoint, zero control: the direction is undefined and the size 0.
        let factors = self.sizes(&norms)?.into_iter().zip(&norms).map(|(size, n)| -size / n.max(TINY));
        let mut factors = factors.collect::<Vec<f64>>().into_iter();
        let controls = adjoints.iter().map(|a| {
            let own: Vec<f64> = factors.by_ref().take(a.dim(0)?).collect();
            a.broadcast_mul(&spread(&Tensor::new(own, a.device())?, a)?)
        });
        controls.collect()
    }

    /// `(f')^{-1}` of each number; 0 where `f'(0)` is already larger.
    pub fn sizes(&self, slopes: &[f64]) -> Result<Vec<f64>> {
        match self {
            // (f')^{-1}(y) = y^(1/(p-1)).
            Regularizer::Power(p) => Ok(slopes.iter().map(|y| y.powf(1.0 / (p - 1.0))).collect()),
            Regularizer::Penalty(f) => Inverse { f: &**f, seen: Vec::new() }.solve(slopes),
        }
    }
}

/// Inverts `f'` by bisection in `log r`, for many numbers at once, and remembers what it saw of `f'`.
struct Inverse<'a> {
    f: &'a PenaltyFn,
    seen: Vec<(f64, f64)>,
}

impl Inverse<'_> {
    fn solve(mut self, slopes: &[f64]) -> Result<Vec<f64>> {
        // A zero slope (no adjoint) asks for no control; only the others are looked for.
        let wanted: Vec<f64> = slopes.iter().copied().filter(|y| *y > 0.0).collect();
        if wanted.is_empty() {
            return Ok(vec![0.0; slopes.len()]);
        }
        let (low, high) = self.bracket(&wanted)?;
        self.scan(&low, &high)?;
        let mut roots = self.bisect(&wanted, low, high)?.into_iter();
        self.check()?;
        Ok(slopes.iter().map(|y| if *y > 0.0 { roots.next().unwrap_or(0.0) } else { 0.0 }).collect())
    }

    /// `f'` at every entry of `r`, by differentiation.
    fn slope(&mut self, r: &[f64]) -> Result<Vec<f64>> {
        let total = |r: &Tensor| {
            let f = (self.f)(r)?;
            if f.dims() != r.dims() {
                bail!(Shape, "penalty: the function must keep the shape {:?} of r, got {:?}", r.dims(), f.dims());
            }
            f.sum_all()
        };
        let slopes = value_and_grad(total, &Tensor::new(r, &Device::Cpu)?)?.1.to_vec1::<f64>()?;
        for (r, s) in r.iter().zip(&slopes) {
            if !s.is_finite() || *s < 0.0 {
                bail!(Value, "penalty: f must be increasing and differentiable, got f'({r:.6}) = {s}");
            }
            self.seen.push((*r, *s));
        }
        Ok(slopes)
    }

    /// Intervals `[low, high]`, a factor of 8 wide, that hold the roots.
    fn bracket(&mut self, wanted: &[f64]) -> Result<(Vec<f64>, Vec<f64>)> {
        let mut r = vec![1.0; wanted.len()];
        let mut slopes = self.slope(&r)?;
        let rising: Vec<bool> = slopes.iter().zip(wanted).map(|(s, y)| s < y).collect();
        loop {
            let moves = |i: usize| match rising[i] {
                true => slopes[i] < wanted[i],
                false => slopes[i] > wanted[i] && r[i] > TINY,
            };
            let moving: Vec<usize> = (0..r.len()).filter(|i| moves(*i)).collect();
            if moving.is_empty() {
                break;
            }
            for &i in &moving {
                r[i] *= if rising[i] { 8.0 } else { 0.125 };
                if r[i] > HUGE {
                    let (y, s) = (wanted[i], slopes[i]);
                    bail!(
                        Value,
                        "penalty: f' must reach {y:.6}, the norm of an adjoint, got at most {s:.6} up to r = {HUGE:e}";
                        hint: "let f grow faster than linearly, or lower the reward scale"
                    );
                }
            }
            slopes = self.slope(&r)?;
        }
        let low = r.iter().zip(&rising).map(|(r, up)| if *up { r / 8.0 } else { *r });
        let high = r.iter().zip(&rising).map(|(r, up)| if *up { *r } else { r * 8.0 });
        Ok((low.collect(), high.collect()))
    }

    /// Looks at `f'` across the whole range met, so that a dip between the roots is not missed.
    fn scan(&mut self, low: &[f64], high: &[f64]) -> Result<()> {
        let least = low.iter().copied().fold(f64::INFINITY, f64::min);
        let most = high.iter().copied().fold(0.0, f64::max);
        let r: Vec<f64> = (0..=64).map(|i| least * (most / least).powf(i as f64 / 64.0)).collect();
        self.slope(&r).map(|_| ())
    }

    fn bisect(&mut self, wanted: &[f64], mut low: Vec<f64>, mut high: Vec<f64>) -> Result<Vec<f64>> {
        // ln 8 / 2^54 is below the resolution of f64.
        for _ in 0..54 {
            let middle: Vec<f64> = low.iter().zip(&high).map(|(l, h)| (l * h).sqrt()).collect();
            for (i, slope) in self.slope(&middle)?.into_iter().enumerate() {
                if slope < wanted[i] { low[i] = middle[i] } else { high[i] = middle[i] }
            }
        }
        // f'(0) above the slope: the best control is none.
        Ok(low.into_iter().map(|r| if r < TINY { 0.0 } else { r }).collect())
    }

    /// `f'` never falls over the points seen.
    fn check(mut self) -> Result<()> {
        self.seen.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut top = (0.0, 0.0);
        for &(r, s) in &self.seen {
            if s < top.1 * (1.0 - 1e-9) {
                let (r0, s0) = top;
                bail!(Value, "penalty: f must be convex, got f'({r0:.6}) = {s0:.6} above f'({r:.6}) = {s:.6}");
            }
            if s > top.1 {
                top = (r, s);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Rng;

    fn penalty(f: impl Fn(&Tensor) -> amscript_base::error::Result<Tensor> + Send + Sync + 'static) -> Regularizer {
        Regularizer::Penalty(Arc::new(move |r| f(r)))
    }

    fn adjoints() -> Vec<Tensor> {
        let mut rng = Rng::new(5);
        let mut draw = |scale: f64| (rng.normal(&[3, 2, 4], DType::F64, &Device::Cpu).unwrap() * scale).unwrap();
        vec![draw(1e-4), draw(0.3), draw(1.0), draw(50.0), draw(1e5)]
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        let size = b.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap() / size
    }

    #[test]
    fn power_is_its_closed_form() {
        for p in [1.5, 3.0, 4.0, 6.0] {
            for (a, u) in adjoints().iter().zip(Regularizer::power(p).unwrap().controls(&adjoints()).unwrap()) {
                let norm = norm_per_sample(a).unwrap();
                let factor = norm.powf((2.0 - p) / (p - 1.0)).unwrap().neg().unwrap();
                let expected = a.broadcast_mul(&spread(&factor, a).unwrap()).unwrap();
                assert!(distance(&u, &expected) < 1e-12, "{p}");
            }
        }
    }

    #[test]
    fn penalty_of_a_power_is_power() {
        for p in [1.5, 2.0, 4.0, 6.0] {
            let closure = penalty(move |r| r.powf(p)? / p).controls(&adjoints()).unwrap();
            for (u, expected) in closure.iter().zip(Regularizer::power(p).unwrap().controls(&adjoints()).unwrap()) {
                assert!(distance(u, &expected) < 1e-12, "{p}");
            }
        }
    }

    #[test]
    fn other_penalties_solve_their_equation() {
        // f = cosh r - 1: f' = sinh r. f = r + r^2 / 2: f' = 1 + r, so no control below |a| = 1.
        let cosh = penalty(|r| (r.exp()? + r.neg()?.exp()?)? * 0.5).sizes(&[0.01, 1.0, 300.0, 0.0]).unwrap();
        for (r, y) in cosh.iter().zip([0.01f64, 1.0, 300.0, 0.0]) {
            assert!((r - y.asinh()).abs() < 1e-11 * y.asinh().max(1e-3), "{r} {y}");
        }
        let kinked = penalty(|r| r + (r.sqr()? * 0.5)?).sizes(&[0.5, 3.0]).unwrap();
        assert!(kinked[0] == 0.0 && (kinked[1] - 2.0).abs() < 1e-12, "{kinked:?}");
    }

    #[test]
    fn a_constant_does_not_change_what_control_gains() {
        // f = cosh r: f* = y asinh y - sqrt(1 + y^2), from -1 on.
        let ys = [0.0f64, 0.1, 0.5, 1.0];
        let cosh = penalty(|r| (r.exp()? + r.neg()?.exp()?)? * 0.5);
        let exact = ys.map(|y| y * y.asinh() - (1.0 + y * y).sqrt());
        for (found, none) in [(cosh.conjugate(&ys).unwrap(), 0.0), (cosh.gain(&ys).unwrap(), 1.0)] {
            assert!(found.iter().zip(exact).all(|(a, b)| (a - b - none).abs() < 1e-11), "{found:?} {exact:?}");
        }
        let power = Regularizer::power(4.0).unwrap().gain(&ys).unwrap();
        assert!(power.iter().zip(ys).all(|(a, y)| (a - y.powf(4.0 / 3.0) * 0.75).abs() < 1e-12), "{power:?}");
    }

    #[test]
    fn unfit_penalties_are_refused() {
        let message =
            |f: fn(&Tensor) -> amscript_base::error::Result<Tensor>| penalty(f).sizes(&[2.0, 7.0]).unwrap_err().message;
        let falling = message(|r| r.neg());
        assert_eq!(falling, "penalty: f must be increasing and differentiable, got f'(1.000000) = -1");
        let saturated = message(|r| (r.sqr()? + 1.0)?.sqrt());
        assert!(saturated.starts_with("penalty: f' must reach 2.000000, the norm of an adjoint, got at most 1.000000"));
        // f' = r + 2 sin r falls between 2.1 and 4.2.
        let wavy = message(|r| (r.sqr()? * 0.5)? - (r.cos()? * 2.0)?);
        assert!(wavy.starts_with("penalty: f must be convex, got f'("), "{wavy}");
        let summed = message(|r| r.sum_all());
        assert_eq!(summed, "penalty: the function must keep the shape [2] of r, got []");
        assert!(Regularizer::power(1.0).is_err());
    }

    #[test]
    fn zero_adjoint_asks_for_no_control() {
        let a = vec![Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap()];
        for r in [Regularizer::quadratic(), Regularizer::Power(6.0), penalty(|r| r.sqr())] {
            let u = r.controls(&a).unwrap()[0].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(u.iter().all(|u| *u == 0.0));
        }
    }
}
