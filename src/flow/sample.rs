//! Samplers: one step of `dX = v(X, t) dt`.

use crate::error::Result;
use crate::tensor::Tensor;

/// A velocity at a state and a time, its condition fixed.
pub type Field<'a> = dyn FnMut(&Tensor, f64) -> Result<Tensor> + 'a;

/// One method of stepping from a time to the next.
pub trait Solver: Send + Sync {
    /// The state at `to`, given the state `x` and the velocity `v = field(x, from)`; `field` gives further stages.
    fn step(&self, field: &mut Field, x: &Tensor, v: &Tensor, span: (f64, f64)) -> Result<Tensor>;

    /// Order of convergence.
    fn order(&self) -> usize;

    /// Name in scripts.
    fn name(&self) -> &'static str;
}

/// Euler's method: `x + h v`. Order 1, one velocity per step.
#[derive(Debug, Clone, Copy)]
pub struct Euler;

/// Heun's method: the mean of the velocities at both ends. Order 2, two velocities per step.
#[derive(Debug, Clone, Copy)]
pub struct Heun;

impl Solver for Euler {
    fn step(&self, _: &mut Field, x: &Tensor, v: &Tensor, (from, to): (f64, f64)) -> Result<Tensor> {
        Ok((x + (v * (to - from))?)?)
    }

    fn order(&self) -> usize {
        1
    }

    fn name(&self) -> &'static str {
        "euler"
    }
}

impl Solver for Heun {
    fn step(&self, field: &mut Field, x: &Tensor, v: &Tensor, (from, to): (f64, f64)) -> Result<Tensor> {
        let h = to - from;
        let ahead = field(&(x + (v * h)?)?, to)?;
        Ok((x + ((v + ahead)? * (0.5 * h))?)?)
    }

    fn order(&self) -> usize {
        2
    }

    fn name(&self) -> &'static str {
        "heun"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Device;

    /// Error at t = 1 for dx/dt = x cos(3 t) from x(0) = 1.
    fn error(solver: &dyn Solver, steps: usize) -> f64 {
        let mut field = |x: &Tensor, t: f64| Ok((x * (3.0 * t).cos())?);
        let mut x = Tensor::new(&[1f64], &Device::Cpu).unwrap();
        for k in 0..steps {
            let (from, to) = (k as f64 / steps as f64, (k + 1) as f64 / steps as f64);
            let v = field(&x, from).unwrap();
            x = solver.step(&mut field, &x, &v, (from, to)).unwrap();
        }
        (x.to_vec1::<f64>().unwrap()[0] - (3f64.sin() / 3.0).exp()).abs()
    }

    #[test]
    fn samplers_converge_with_their_order() {
        for solver in [&Euler as &dyn Solver, &Heun] {
            let slope = (error(solver, 512) / error(solver, 1024)).log2();
            assert!((slope - solver.order() as f64).abs() < 0.05, "{} has order {slope}", solver.name());
        }
    }
}
