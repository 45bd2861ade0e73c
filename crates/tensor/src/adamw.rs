//! The arithmetic of one AdamW step, in place: fused on processor and card, composed of other ops elsewhere.

use super::check::read;
use super::{DType, Tensor, cuda};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::{CpuStorage, InplaceOp3, Layout};
use rayon::prelude::*;

/// The sum of squares of each tensor; from another device they come in one transfer.
pub fn sums_of_squares(tensors: &[Tensor]) -> Result<Vec<f64>> {
    if tensors.iter().all(|x| x.device().is_cpu()) {
        return tensors.iter().map(sum_of_squares).collect();
    }
    // f16 ends at 65504, which a square reaches early.
    let wide = |x: &Tensor| x.to_dtype(if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 });
    let sums = tensors.iter().map(|x| wide(x)?.sqr()?.sum_all()?.to_dtype(DType::F64));
    read(&Tensor::stack(&sums.collect::<Result<Vec<_>>>()?, 0)?)
}

/// Summed in f64 over fixed chunks, so that the result does not depend on the number of threads.
fn sum_of_squares(x: &Tensor) -> Result<f64> {
    let x = x.flatten_all()?.contiguous()?;
    let (storage, layout) = x.array().storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + x.elem_count();
    let chunks: Vec<f64> = match &*storage {
        candle_core::Storage::Cpu(CpuStorage::F32(v)) => {
            v[range].par_chunks(CHUNK).map(|c| c.iter().map(|x| *x as f64 * *x as f64).sum()).collect()
        }
        candle_core::Storage::Cpu(CpuStorage::F64(v)) => {
            v[range].par_chunks(CHUNK).map(|c| c.iter().map(|x| x * x).sum()).collect()
        }
        _ => bail!(Dtype, "step: gradients must be f32 or f64, got {:?}", x.dtype()),
    };
    Ok(chunks.iter().sum())
}

/// Elements that one thread takes at a time.
const CHUNK: usize = 1 << 15;

/// The numbers of one step, equal for all parameters.
pub struct AdamWStep {
    pub rate: f64,
    /// Factor on the gradient, from clipping.
    pub scale: f64,
    pub betas: [f64; 2],
    /// `1 - beta^t` of both moments.
    pub corrections: [f64; 2],
    pub epsilon: f64,
    /// Factor on the value.
    pub decay: f64,
}

impl AdamWStep {
    /// Algorithm 2 of arXiv:1711.05101.
    pub fn apply(&self, value: &Tensor, gradient: &Tensor, first: &Tensor, second: &Tensor) -> Result<()> {
        let ([b1, b2], [c1, c2]) = (self.betas, self.corrections);
        let (rate, scale, epsilon, decay) = (self.rate, self.scale, self.epsilon, self.decay);
        if cuda::adamw::takes(value.array(), gradient.array()) {
            let numbers = [scale, b1, b2, rate / c1, c2, epsilon, decay];
            let [value, first, second] = [value, first, second].map(Tensor::array);
            return cuda::adamw::step(gradient.array(), value, first, second, numbers);
        }
        let gradient = gradient.to_dtype(value.dtype())?.contiguous()?;
        if value.device().is_cpu() {
            let [value, gradient, first, second] = [value, &gradient, first, second].map(Tensor::array);
            first.inplace_op3(gradient, gradient, &Each(|m: f64, g, _| b1 * m + (1.0 - b1) * scale * g))?;
            let square = |v: f64, g: f64, _| b2 * v + (1.0 - b2) * (scale * g) * (scale * g);
            second.inplace_op3(gradient, gradient, &Each(square))?;
            let step = |x: f64, m: f64, v: f64| decay * x - rate * (m / c1) / ((v / c2).sqrt() + epsilon);
            return Ok(value.inplace_op3(first, second, &Each(step))?);
        }
        self.apply_composed(value, &gradient, first, second)
    }

    /// The same from candle's own operations, for devices without the fused loop.
    fn apply_composed(&self, value: &Tensor, gradient: &Tensor, first: &Tensor, second: &Tensor) -> Result<()> {
        let ([b1, b2], [c1, c2]) = (self.betas, self.corrections);
        let (m, v) = (first.constant(), second.constant());
        first.set(&((m * b1)? + (gradient * ((1.0 - b1) * self.scale))?)?)?;
        second.set(&((v * b2)? + (gradient.sqr()? * ((1.0 - b2) * self.scale * self.scale))?)?)?;
        let root = ((second.constant() / c2)?.sqrt()? + self.epsilon)?;
        let change = ((first.constant() * (self.rate / c1))? / root)?;
        value.set(&((value.constant() * self.decay)? - change)?)
    }
}

/// `x <- f(x, a, b)` for every element of contiguous CPU tensors.
struct Each<F>(F);

impl<F: Fn(f64, f64, f64) -> f64 + Sync> InplaceOp3 for Each<F> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        xl: &Layout,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> candle_core::Result<()> {
        let range = |l: &Layout| l.start_offset()..l.start_offset() + l.shape().elem_count();
        match (x, a, b) {
            (CpuStorage::F32(x), CpuStorage::F32(a), CpuStorage::F32(b)) => {
                let f = |x, a, b| self.0(f64::from(x), f64::from(a), f64::from(b)) as f32;
                each(&mut x[range(xl)], &a[range(al)], &b[range(bl)], f)
            }
            (CpuStorage::F64(x), CpuStorage::F64(a), CpuStorage::F64(b)) => {
                each(&mut x[range(xl)], &a[range(al)], &b[range(bl)], &self.0)
            }
            _ => candle_core::bail!("adamw: tensors must be all f32 or all f64"),
        }
        Ok(())
    }
}

fn each<T: Copy + Send + Sync>(x: &mut [T], a: &[T], b: &[T], f: impl Fn(T, T, T) -> T + Sync) {
    x.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).for_each(|((x, a), b)| {
        for ((x, a), b) in x.iter_mut().zip(a).zip(b) {
            *x = f(*x, *a, *b);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Rng};

    #[test]
    fn fused_and_composed_updates_agree() {
        let mut rng = Rng::new(4);
        let mut draw = || rng.normal(&[70_000], DType::F32, &Device::Cpu).unwrap();
        let (x, g) = (draw(), draw());
        let (betas, corrections) = ([0.9, 0.99], [0.271, 0.029701]); // of the third step
        let update = AdamWStep { rate: 1e-3, scale: 0.7, betas, corrections, epsilon: 1e-8, decay: 0.99 };
        let run = |fused: bool| {
            let var = |t: &Tensor| t.variable().unwrap();
            let (x, m, v) = (var(&x), var(&g.affine(0.5, 0.0).unwrap()), var(&g.sqr().unwrap()));
            match fused {
                true => update.apply(&x, &g, &m, &v).unwrap(),
                false => update.apply_composed(&x, &g, &m, &v).unwrap(),
            }
            x.to_vec1::<f32>().unwrap()
        };
        let largest = run(true).iter().zip(run(false)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest < 1e-6, "{largest}");
    }
}
