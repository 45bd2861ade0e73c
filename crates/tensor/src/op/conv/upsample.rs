//! Nearest upsampling, alone and with a convolution behind it.

use super::{Begin, ConvShape, conv2d, convolve, flipped};
use crate::kernel::{Real, data, fresh, grain, on_cpu};
use crate::op::call::{Backend, Inputs, Keeps, Kept, Kernels, Op, apply, given, there};
use crate::{Array, Tensor, cuda};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::Shape;
use rayon::prelude::*;

/// [`conv2d`] of [`upsample_nearest2x`] with a 3 x 3 kernel and padding 1.
///
/// A frozen kernel on the CPU meets each input pixel twice per axis, so that every second line and column of the result is a 2 x 2
/// convolution of `x` itself: 4/9 of the multiplications, and no upsampled image.
pub fn upsampled_conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let frozen = !weight.requires_grad() && !bias.requires_grad();
    let fits = matches!((x.dims(), weight.dims()), ([_, a, _, _], [_, b, 3, 3]) if a == b);
    match frozen && fits {
        true => apply(UpsampledConv2d, [Some(x), Some(weight), Some(bias)]),
        false => conv2d(&upsample_nearest2x(x)?, weight, Some(bias), 1, 1),
    }
}

/// Of `[x, weight, bias]`, the last two of which are constants.
struct UpsampledConv2d;

impl Op<3> for UpsampledConv2d {
    type More = ();

    fn name(&self) -> &'static str {
        "upsampled_conv2d"
    }

    fn shape(&self, [x, weight, bias]: Inputs<3>) -> Result<Shape> {
        let ((batch, _, h, w), outer) = (given(x)?.dims4()?, given(weight)?.dim(0)?);
        let bias = given(bias)?.dims();
        if bias != [outer] {
            bail!(Shape, "upsampled_conv2d: expected a bias [{outer}], got shape {bias:?}");
        }
        Ok((batch, outer, 2 * h, 2 * w).into())
    }

    fn kernels(&self) -> Kernels {
        Kernels::PROCESSOR
    }

    fn keeps(&self, _: Backend, _: Inputs<3>, [gx, ..]: [bool; 3]) -> Keeps<3> {
        Keeps::inputs([false, gx, false])
    }

    fn forward(&self, _: Backend, [x, weight, bias]: Inputs<3>, _: [bool; 3]) -> Result<(Array, ())> {
        let (x, weight, bias) = (given(x)?, given(weight)?, given(bias)?);
        Ok((on_cpu!(x, upsampled(x, weight, bias))?, ()))
    }

    fn backward(&self, kept: Kept<3, ()>, gradient: &Array, _: [bool; 3]) -> Result<[Option<Array>; 3]> {
        let (weight, shape) = (given(kept.inputs[1])?, kept.shapes[0]);
        Ok([Some(on_cpu!(gradient, upsampled_back(gradient, weight, shape))?), None, None])
    }

    fn composed(&self, [x, weight, bias]: [Option<&Tensor>; 3]) -> Result<Tensor> {
        conv2d(&upsample_nearest2x(there(x)?)?, there(weight)?, bias, 1, 1)
    }

    fn work(&self, [x, ..]: Inputs<3>, result: &Shape) -> f64 {
        let inner = x.map_or(0, |x| x.dims()[1]);
        result.elem_count() as f64 * (2 * 4 * inner + 1) as f64
    }

    /// The four parts before they are put together.
    fn scratch(&self, on: Backend, [x, weight, _]: Inputs<3>) -> usize {
        let (Some(x), Some(weight), Backend::Processor) = (x, weight, on) else { return 0 };
        let channels = weight.dims()[0];
        4 * channels * (x.elem_count() / x.dims()[1].max(1)) * x.dtype().size_in_bytes().max(size_of::<f32>())
    }
}

fn upsampled<T: Real>(x: &Array, weight: &Array, bias: &Array) -> Result<Array> {
    let ((batch, _, h, w), outer) = (x.dims4()?, weight.dim(0)?);
    let (numbers, taps, bias) = (data::<T>(x)?, data::<T>(weight)?, data::<T>(bias)?);
    let parts = PHASES.map(|phase| {
        let z = phase_shape(x.dims(), outer, phase);
        fresh(z.results(), |out| convolve(&numbers, &summed(&taps, phase), Begin::Bias(&bias), z, out))
    });
    let out = fresh(4 * batch * outer * h * w, |out| interleave(&parts, w, out));
    Ok(Array::from_vec(out, (batch, outer, 2 * h, 2 * w), x.device())?)
}

/// The gradient of the input, which has this shape.
fn upsampled_back<T: Real>(gradient: &Array, weight: &Array, shape: &[usize]) -> Result<Array> {
    let (g, taps) = (data::<T>(gradient)?, data::<T>(weight)?);
    let mut out = vec![T::zero(); shape.iter().product()];
    for phase in PHASES {
        let z = phase_shape(shape, weight.dim(0)?, phase);
        let Some(back) = z.input_gradient_shape() else {
            bail!(Internal, "upsampled_conv2d: expected a gradient, got none")
        };
        let (part, kernel) = (every_second(&g, 2 * z.w, phase), flipped(&summed(&taps, phase), z));
        convolve(&part, &kernel, Begin::Kept, back, &mut out);
    }
    Ok(Array::from_vec(out, shape, gradient.device())?)
}

/// The convolution of `x` of this shape, `[batch, inner, h, w]`, that one part is.
fn phase_shape(x: &[usize], outer: usize, [i, j]: [usize; 2]) -> ConvShape {
    let (batch, inner, h, w) = (x[0], x[1], x[2], x[3]);
    let padding = [1 - i, 1 - j];
    ConvShape { batch, inner, h, w, outer, kh: 2, kw: 2, stride: 1, padding, oh: h, ow: w }
}

/// The lines and columns, even or odd, of each of the four parts.
const PHASES: [[usize; 2]; 4] = [[0, 0], [0, 1], [1, 0], [1, 1]];

/// The 2 x 2 kernels that 3 x 3 kernels amount to where both axes are doubled: the last two taps fall on one pixel for even lines and
/// columns, the first two for odd ones.
fn summed<T: Real>(weight: &[T], [i, j]: [usize; 2]) -> Vec<T> {
    let tap = |k: usize, odd: usize| (k + 1 - odd) / 2; // of 0, 1, 2
    let mut kernels = vec![T::zero(); weight.len() / 9 * 4];
    for (kernel, weight) in kernels.chunks_mut(4).zip(weight.chunks(9)) {
        weight.iter().enumerate().for_each(|(k, w)| kernel[2 * tap(k / 3, i) + tap(k % 3, j)] += *w);
    }
    kernels
}

/// Lines of `w` numbers of the four parts, as lines of `2 w` of the whole.
fn interleave<T: Real>(parts: &[Vec<T>; 4], w: usize, out: &mut [T]) {
    out.par_chunks_mut(2 * w.max(1)).with_min_len(grain(w)).enumerate().for_each(|(line, out)| {
        let [even, odd] = [0, 1].map(|j| &parts[line % 2 * 2 + j][line / 2 * w..][..w]);
        out.chunks_exact_mut(2).zip(even.iter().zip(odd)).for_each(|(out, (a, b))| (out[0], out[1]) = (*a, *b));
    });
}

/// One of the four parts of lines of `w` numbers.
fn every_second<T: Real>(x: &[T], w: usize, [i, j]: [usize; 2]) -> Vec<T> {
    fresh(x.len() / 4, |out| {
        let lines = out.par_chunks_mut(w.max(2) / 2).with_min_len(grain(w)).zip(x.par_chunks(2 * w.max(1)));
        lines.for_each(|(out, two)| {
            out.iter_mut().zip(two[i * w + j..].iter().step_by(2)).for_each(|(o, x)| *o = *x);
        });
    })
}

/// Doubles height and width of `x [batch, channels, h, w]` by repeating pixels.
pub fn upsample_nearest2x(x: &Tensor) -> Result<Tensor> {
    apply(Upsample, [Some(x)])
}

struct Upsample;

impl Op<1> for Upsample {
    type More = ();

    fn name(&self) -> &'static str {
        "upsample_nearest2x"
    }

    fn shape(&self, [x]: Inputs<1>) -> Result<Shape> {
        let (b, c, h, w) = given(x)?.dims4()?;
        Ok((b, c, 2 * h, 2 * w).into())
    }

    fn keeps(&self, _: Backend, _: Inputs<1>, _: [bool; 1]) -> Keeps<1> {
        Keeps::NOTHING
    }

    fn forward(&self, on: Backend, [x]: Inputs<1>, _: [bool; 1]) -> Result<(Array, ())> {
        let x = given(x)?;
        let y = match on {
            Backend::Card => cuda::pool::twice(x),
            _ => on_cpu!(x, twice(x)),
        };
        Ok((y?, ()))
    }

    fn backward(&self, kept: Kept<1, ()>, gradient: &Array, _: [bool; 1]) -> Result<[Option<Array>; 1]> {
        let gx = match kept.on {
            Backend::Card => cuda::pool::twice_back(gradient),
            _ => on_cpu!(gradient, twice_back(gradient)),
        };
        Ok([Some(gx?)])
    }

    fn composed(&self, [x]: [Option<&Tensor>; 1]) -> Result<Tensor> {
        let x = there(x)?;
        let (b, c, h, w) = x.dims4()?;
        let repeated = x.reshape((b, c, h, 1, w, 1))?.broadcast_as((b, c, h, 2, w, 2))?;
        repeated.reshape((b, c, 2 * h, 2 * w))
    }
}

fn twice<T: Real>(x: &Array) -> Result<Array> {
    let (b, c, h, w) = x.dims4()?;
    let numbers = data::<T>(x)?;
    let out = fresh(4 * numbers.len(), |out| {
        out.par_chunks_mut(4 * w).with_min_len(grain(w)).zip(numbers.par_chunks(w)).for_each(|(two, row)| {
            let (first, second) = two.split_at_mut(2 * w);
            first.chunks_exact_mut(2).zip(row).for_each(|(pair, x)| (pair[0], pair[1]) = (*x, *x));
            second.copy_from_slice(first);
        });
    });
    Ok(Array::from_vec(out, (b, c, 2 * h, 2 * w), x.device())?)
}

fn twice_back<T: Real>(gradient: &Array) -> Result<Array> {
    let (b, c, h, w) = gradient.dims4()?;
    let (h, w, g) = (h / 2, w / 2, data::<T>(gradient)?);
    let out = fresh(b * c * h * w, |out| {
        out.par_chunks_mut(w).with_min_len(grain(w)).zip(g.par_chunks(4 * w)).for_each(|(row, two)| {
            let (first, second) = two.split_at(2 * w);
            let pairs = first.chunks_exact(2).zip(second.chunks_exact(2));
            row.iter_mut().zip(pairs).for_each(|(o, (p, q))| *o = p[0] + p[1] + q[0] + q[1]);
        });
    });
    Ok(Array::from_vec(out, (b, c, h, w), gradient.device())?)
}

#[cfg(test)]
pub(super) fn cases() -> Vec<crate::op::cases::Case> {
    use crate::op::cases::case;
    use crate::{DType, Device, Rng};
    let mut all = Vec::new();
    for (h, w) in [(5, 4), (4, 4), (5, 7), (9, 6)] {
        all.push(case("upsample_nearest2x", &[&[2, 3, h, w]], |i| upsample_nearest2x(&i[0])));
    }
    for (shape, outer) in [([2, 3, 5, 4], 2), ([1, 2, 1, 1], 3), ([1, 1, 17, 1], 1)] {
        let frozen = move |shape: &[usize], seed, x: &Tensor| {
            let numbers = Rng::new(seed).normal(shape, DType::F64, &Device::Cpu)?;
            numbers.to_dtype(x.dtype())?.to_device(x.device())
        };
        let f = move |i: &[Tensor]| {
            let [weight, bias] = [frozen(&[outer, shape[1], 3, 3], 6, &i[0])?, frozen(&[outer], 7, &i[0])?];
            upsampled_conv2d(&i[0], &weight, &bias)
        };
        all.push(case("upsampled_conv2d", &[&shape], f));
        let f = |i: &[Tensor]| upsampled_conv2d(&i[0], &i[1], &i[2]);
        all.push(case("upsampled_conv2d, trained", &[&shape, &[outer, shape[1], 3, 3], &[outer]], f));
    }
    all
}
