//! Pooling and nearest upsampling of planes.

use super::{Arg, File, Grid, Unit, fresh, launch, plain};
use crate::Array;
use crate::op::PoolShape;
use amscript_base::error::Result;
use candle_core::DType;

/// A kernel of the rows of `out`; the first of `tensors` and `out` are of one type.
fn planes(kernel: &'static str, out: &Array, tensors: &[&Array], numbers: &[usize]) -> Result<()> {
    let (batch, channels, height, width) = out.dims4()?;
    let rows = batch * channels * height;
    let numbers = std::iter::once(&rows).chain(numbers).map(|n| Arg::Int(*n));
    let args: Vec<Arg> = tensors.iter().map(|x| Arg::Tensor(x)).chain(numbers).collect();
    launch(out.device(), &Unit::new(File::Planes, out, 1), kernel, Grid::lines(rows, width), &args)
}

fn windows(z: PoolShape) -> [usize; 6] {
    [z.h, z.w, z.size, z.stride, z.oh, z.ow]
}

/// Largest number of each window of `x [batch, channels, h, w]`, and where it stands in its plane, u32.
pub fn largest(x: &Array, z: PoolShape) -> Result<(Array, Array)> {
    let x = plain(x, x.dtype())?;
    let out = fresh(z.output(), x.dtype(), x.device())?;
    let places = fresh(z.output(), DType::U32, x.device())?;
    planes("largest", &out, &[&x, &out, &places], &windows(z))?;
    Ok((out, places))
}

/// The gradient of its input.
pub fn largest_back(gradient: &Array, places: &Array, z: PoolShape) -> Result<Array> {
    let gradient = plain(gradient, gradient.dtype())?;
    let out = fresh(z.input(), gradient.dtype(), gradient.device())?;
    planes("largest_back", &out, &[&gradient, places, &out], &windows(z))?;
    Ok(out)
}

fn tiles(z: PoolShape) -> [usize; 7] {
    [z.h, z.w, z.size, z.padding[0], z.padding[1], z.oh, z.ow]
}

/// Mean of windows beside each other, padded with zeros that count.
pub fn mean(x: &Array, z: PoolShape) -> Result<Array> {
    let x = plain(x, x.dtype())?;
    let out = fresh(z.output(), x.dtype(), x.device())?;
    planes("mean", &out, &[&x, &out], &tiles(z))?;
    Ok(out)
}

/// The gradient of its input.
pub fn mean_back(gradient: &Array, z: PoolShape) -> Result<Array> {
    let gradient = plain(gradient, gradient.dtype())?;
    let out = fresh(z.input(), gradient.dtype(), gradient.device())?;
    planes("mean_back", &out, &[&gradient, &out], &tiles(z))?;
    Ok(out)
}

/// Doubles height and width of `x [batch, channels, h, w]` by repeating pixels.
pub fn twice(x: &Array) -> Result<Array> {
    let (b, c, h, w) = x.dims4()?;
    let x = plain(x, x.dtype())?;
    let out = fresh((b, c, 2 * h, 2 * w), x.dtype(), x.device())?;
    planes("twice", &out, &[&x, &out], &[w])?;
    Ok(out)
}

/// The gradient of its input.
pub fn twice_back(gradient: &Array) -> Result<Array> {
    let (b, c, h, w) = gradient.dims4()?;
    let gradient = plain(gradient, gradient.dtype())?;
    let out = fresh((b, c, h / 2, w / 2), gradient.dtype(), gradient.device())?;
    planes("twice_back", &out, &[&gradient, &out], &[w / 2])?;
    Ok(out)
}
