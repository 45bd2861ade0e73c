//! Pooling and nearest upsampling of planes.

use super::{Arg, File, Grid, Unit, fresh, launch, plain};
use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use candle_core::{DType, Tensor};

/// Planes `h x w` to `oh x ow` windows of `size` every `stride`.
#[derive(Clone, Copy)]
pub struct Windows {
    pub h: usize,
    pub w: usize,
    pub size: usize,
    pub stride: usize,
    pub padding: [usize; 2],
    pub oh: usize,
    pub ow: usize,
}

/// A kernel with one thread per number of `out`, the last of `tensors` of x's type.
fn planes(kernel: &'static str, x: &Tensor, out: &Tensor, tensors: &[&Tensor], numbers: &[usize]) -> Result<()> {
    let n = out.elem_count();
    let numbers = numbers.iter().map(|n| Arg::Int(*n));
    let args: Vec<Arg> = tensors.iter().map(|x| Arg::Tensor(x)).chain([Arg::Long(n)]).chain(numbers).collect();
    launch(out.device(), &Unit::new(File::Planes, x, 1), kernel, Grid::each(n), &args)
}

/// Largest number of each window of `x [batch, channels, h, w]`.
pub fn max_pool2d(x: &Tensor, z: Windows) -> Result<Tensor> {
    let (b, c, ..) = x.dims4()?;
    let input = plain(x, x.dtype())?;
    let out = fresh((b, c, z.oh, z.ow), x.dtype(), x.device())?;
    let places = fresh((b, c, z.oh, z.ow), DType::U32, x.device())?;
    let numbers = [z.h, z.w, z.size, z.stride, z.oh, z.ow];
    planes("largest", &input, &out, &[&input, &out, &places], &numbers)?;
    let dtype = x.dtype();
    custom_vjp(&[x], out, move |grad, _| {
        let grad = plain(grad, dtype)?;
        let gx = fresh((b, c, z.h, z.w), dtype, grad.device())?;
        planes("largest_back", &grad, &gx, &[&grad, &places, &gx], &numbers)?;
        Ok(vec![Some(gx)])
    })
}

/// Mean of windows beside each other, padded with zeros that count.
pub fn avg_pool2d(x: &Tensor, z: Windows) -> Result<Tensor> {
    let (b, c, ..) = x.dims4()?;
    let input = plain(x, x.dtype())?;
    let out = fresh((b, c, z.oh, z.ow), x.dtype(), x.device())?;
    let numbers = [z.h, z.w, z.size, z.padding[0], z.padding[1], z.oh, z.ow];
    planes("mean", &input, &out, &[&input, &out], &numbers)?;
    let dtype = x.dtype();
    custom_vjp(&[x], out, move |grad, _| {
        let grad = plain(grad, dtype)?;
        let gx = fresh((b, c, z.h, z.w), dtype, grad.device())?;
        planes("mean_back", &grad, &gx, &[&grad, &gx], &numbers)?;
        Ok(vec![Some(gx)])
    })
}

/// Doubles height and width of `x [batch, channels, h, w]` by repeating pixels.
pub fn upsample_nearest2x(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let input = plain(x, x.dtype())?;
    let out = fresh((b, c, 2 * h, 2 * w), x.dtype(), x.device())?;
    planes("twice", &input, &out, &[&input, &out], &[w])?;
    let dtype = x.dtype();
    custom_vjp(&[x], out, move |grad, _| {
        let grad = plain(grad, dtype)?;
        let gx = fresh((b, c, h, w), dtype, grad.device())?;
        planes("twice_back", &grad, &gx, &[&grad, &gx], &[w])?;
        Ok(vec![Some(gx)])
    })
}
