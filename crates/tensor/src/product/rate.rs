//! What products reach on this processor, for a profile to compare with.

use crate::{DType, Device, Rng, Tensor, op};
use amscript_base::error::Result;
use std::time::{Duration, Instant};

/// Multiplications and additions a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of large square matrices.
    pub large: f64,
    /// Of the same in bf16.
    pub bf16: f64,
    /// Of a layer of 1024 inputs and 3072 outputs on 320 rows, whose weight comes from memory.
    pub cold: f64,
}

/// Measures for some 0.5 s.
pub fn rates() -> Result<Rates> {
    let large = [2048, 2048, 2048];
    Ok(Rates {
        large: rate(large, 1, DType::F32)?,
        bf16: rate(large, 1, DType::BF16)?,
        cold: rate([320, 1024, 3072], 6, DType::F32)?,
    })
}

/// Of products of `rows` rows with so many weights in turn: the best of a few rounds.
fn rate([rows, inner, out]: [usize; 3], weights: usize, dtype: DType) -> Result<f64> {
    const LONG_ENOUGH: Duration = Duration::from_millis(150);
    let random = |shape: [usize; 2], seed| Rng::new(seed).normal(&shape, dtype, &Device::Cpu);
    let (x, weight) = (random([rows, inner], 0)?, random([out, inner], 1)?);
    let weights =
        (0..weights).map(|_| Ok(Tensor::from(weight.array().force_contiguous()?))).collect::<Result<Vec<Tensor>>>()?;
    let (begun, mut best) = (Instant::now(), f64::MAX);
    while begun.elapsed() < LONG_ENOUGH {
        let round = Instant::now();
        for weight in &weights {
            op::linear(&x, weight, None, None)?;
        }
        best = best.min(round.elapsed().as_secs_f64());
    }
    Ok((2 * rows * inner * out * weights.len()) as f64 / best)
}
