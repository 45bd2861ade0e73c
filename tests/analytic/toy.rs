//! Small fields, costs and comparisons that the solver's tests share.

use amscript::Result;
use amscript::align::{self, AdjointMatching, Batch, Draft, Method, MethodState, RewardCost, Update};
use amscript::flow::{Condition, Velocity};
use amscript::tensor::sample::{spread, sum_per_sample};
use amscript::tensor::{Device, Tensor};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

pub type Tensors = HashMap<String, Tensor>;

pub fn load(path: &str) -> Tensors {
    let path = format!("{}/tests/golden/{path}", env!("CARGO_MANIFEST_DIR"));
    amscript::tensor::file::load(path, &Device::Cpu).unwrap()
}

/// Largest difference relative to the largest entry of `expected`.
pub fn relative(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.dims(), expected.dims());
    let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    largest(&(got - expected).unwrap()) / largest(expected).max(1e-300)
}

pub fn numbers(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// One update of a method that keeps nothing.
pub fn update(
    method: &dyn Method,
    [policy, base]: [&dyn Velocity; 2],
    x0: &Tensor,
    condition: &Condition,
    cost: &RewardCost,
) -> Result<Update> {
    align::update(method, policy, base, &Batch::new(x0, condition, cost.clone()), &mut MethodState::default())
}

pub fn adjoint_matching(
    policy: &dyn Velocity,
    base: &dyn Velocity,
    x0: &Tensor,
    condition: &Condition,
    cost: &RewardCost,
    method: &AdjointMatching,
) -> Result<Update> {
    update(method, [policy, base], x0, condition, cost)
}

pub fn draft(
    policy: &dyn Velocity,
    x0: &Tensor,
    condition: &Condition,
    cost: &RewardCost,
    method: &Draft,
) -> Result<Update> {
    update(method, [policy, policy], x0, condition, cost)
}

/// The golden case's network: Linear, tanh, Linear, tanh, Linear on `[x, t]`.
pub struct Mlp(pub Vec<Tensor>);

impl Mlp {
    /// `prefix` is "base" or "tuned".
    pub fn load(weights: &Tensors, prefix: &str) -> Self {
        let names = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"];
        Self(names.map(|n| (weights[&format!("{prefix}.{n}")]).variable().unwrap()).into())
    }

    pub fn params(&self) -> Vec<Tensor> {
        self.0.to_vec()
    }
}

/// The golden case `adjoint`: what is expected, the base and the tuned network.
pub fn golden() -> (Tensors, Mlp, Mlp) {
    let weights = load("adjoint/weights.safetensors");
    (load("adjoint/expected.safetensors"), Mlp::load(&weights, "base"), Mlp::load(&weights, "tuned"))
}

impl Velocity for Mlp {
    fn velocity(&self, x: &Tensor, t: &Tensor, _: &Condition) -> Result<Tensor> {
        let layer = |x: &Tensor, i: usize| x.matmul(&self.0[i].t()?)?.broadcast_add(&self.0[i + 1]);
        let x = Tensor::cat(&[x, &t.unsqueeze(1)?], 1)?;
        layer(&layer(&layer(&x, 0)?.tanh()?, 2)?.tanh()?, 4)
    }
}

/// Counts the velocities asked of another field.
pub struct Counted<'a>(pub &'a dyn Velocity, pub AtomicUsize);

impl<'a> Counted<'a> {
    pub fn new(field: &'a dyn Velocity) -> Self {
        Self(field, AtomicUsize::new(0))
    }

    pub fn calls(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }
}

impl Velocity for Counted<'_> {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.velocity(x, t, condition)
    }
}

/// `r(x) = sum_i c_i sin(x_i) - 0.3 |x|^2`, the golden case's reward.
pub fn reward(c: &Tensor, scale: f64) -> RewardCost {
    let c = c.clone();
    let reward = move |x: &Tensor| {
        let waves = x.sin()?.broadcast_mul(&c)?.sum(1)?;
        waves - (sum_per_sample(&x.sqr()?)? * 0.3)?
    };
    RewardCost::new(reward, scale).unwrap()
}

/// The exact velocity between the Gaussians `N(m0, s0^2)` and `N(m1, s1^2)`, every entry independent.
pub struct Gaussian {
    pub means: [f64; 2],
    pub deviations: [f64; 2],
}

impl Gaussian {
    /// Variance `S(t) = (1-t)^2 s0^2 + t^2 s1^2`.
    pub fn variance(&self, t: f64) -> f64 {
        let [s0, s1] = self.deviations;
        (1.0 - t).powi(2) * s0 * s0 + t * t * s1 * s1
    }
}

impl Velocity for Gaussian {
    fn velocity(&self, x: &Tensor, t: &Tensor, _: &Condition) -> Result<Tensor> {
        let ([m0, m1], [s0, s1]) = (self.means, self.deviations);
        // v = m1 - m0 + S' / (2 S) (x - m_t)
        let slope = |t: f64| (t * s1 * s1 - (1.0 - t) * s0 * s0) / self.variance(t);
        let times = t.to_vec1::<f64>()?;
        let slopes = Tensor::new(times.iter().map(|t| slope(*t)).collect::<Vec<_>>(), x.device())?;
        let means = Tensor::new(times.iter().map(|t| (1.0 - t) * m0 + t * m1).collect::<Vec<_>>(), x.device())?;
        let centred = x.broadcast_sub(&spread(&means, x)?)?;
        centred.broadcast_mul(&spread(&slopes, x)?)? + (m1 - m0)
    }
}
