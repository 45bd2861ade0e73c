//! Pooling: the largest or the mean of small windows.

use crate::bail;
use crate::error::Result;
use crate::tensor::cuda;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Real, data, grain, on_cpu};
use candle_core::Tensor;
use rayon::prelude::*;

/// Sizes of one pooling: planes `h x w`, windows of `size` every `stride`, `oh x ow` of them.
#[derive(Clone, Copy)]
struct Sizes {
    h: usize,
    w: usize,
    size: usize,
    stride: usize,
    /// Zeros in front of rows and columns.
    padding: [usize; 2],
    oh: usize,
    ow: usize,
}

impl Sizes {
    fn new(name: &str, x: &Tensor, size: usize, stride: usize, padding: [usize; 2]) -> Result<Self> {
        let (_, _, h, w) = x.dims4()?;
        let [ph, pw] = padding.map(|p| 2 * p);
        if size == 0 || stride == 0 || h + ph < size || w + pw < size {
            bail!(Shape, "{name}: windows of {size} every {stride} do not fit input {:?}", x.dims());
        }
        let (oh, ow) = ((h + ph - size) / stride + 1, (w + pw - size) / stride + 1);
        Ok(Self { h, w, size, stride, padding, oh, ow })
    }

    fn on_cuda(&self) -> cuda::pool::Windows {
        let Self { h, w, size, stride, padding, oh, ow } = *self;
        cuda::pool::Windows { h, w, size, stride, padding, oh, ow }
    }

    /// Of each column of a plane the largest number among `size` rows from `first` on, and the first place that has it.
    fn column_tops<T: Real>(&self, plane: &[T], first: usize, tops: &mut [(T, u32)]) {
        for (row, line) in plane.chunks(self.w).enumerate().skip(first).take(self.size) {
            for (column, (top, v)) in tops.iter_mut().zip(line).enumerate() {
                if row == first || *v > top.0 || v.is_nan() {
                    *top = (*v, (row * self.w + column) as u32);
                }
            }
        }
    }

    /// Calls `f(output pixel, rows, columns)` for each window, cut at the edges.
    fn windows(&self, mut f: impl FnMut(usize, std::ops::Range<usize>, std::ops::Range<usize>)) {
        let cut = |i: usize, padding: usize, side: usize| {
            let start = i * self.stride;
            start.saturating_sub(padding)..(start + self.size).saturating_sub(padding).min(side)
        };
        for i in 0..self.oh * self.ow {
            f(i, cut(i / self.ow, self.padding[0], self.h), cut(i % self.ow, self.padding[1], self.w));
        }
    }
}

/// Largest number of each window of `x [batch, channels, h, w]`; rows and columns that fill no window are left out.
///
/// The gradient goes to the first of equal maxima.
pub fn max_pool2d(x: &Tensor, size: usize, stride: usize) -> Result<Tensor> {
    let z = Sizes::new("max_pool2d", x, size, stride, [0, 0])?;
    if cuda::takes(x) {
        return cuda::pool::max_pool2d(x, z.on_cuda());
    }
    on_cpu!(x, max_cpu(x, z), max_composed(x, z))
}

fn max_cpu<T: Real>(x: &Tensor, z: Sizes) -> Result<Tensor> {
    let (b, c, ..) = x.dims4()?;
    let input = x.detach().contiguous()?;
    let planes = data::<T>(&input)?;
    let mut out = vec![T::zero(); b * c * z.oh * z.ow];
    let mut places = vec![0u32; out.len()];
    let (plane, pixels) = (z.h * z.w, z.oh * z.ow);
    let rows = out.par_chunks_mut(pixels).zip(places.par_chunks_mut(pixels)).with_min_len(grain(plane));
    rows.zip(planes.par_chunks(plane)).for_each(|((out, places), x)| {
        let mut tops = vec![(T::zero(), 0); z.w];
        for (i, (out, places)) in out.chunks_mut(z.ow).zip(places.chunks_mut(z.ow)).enumerate() {
            z.column_tops(x, i * z.stride, &mut tops);
            for ((out, place), window) in out.iter_mut().zip(places).zip(tops.windows(z.size).step_by(z.stride)) {
                (*out, *place) = window[1..].iter().fold(window[0], |top, next| match next.0 == top.0 {
                    true => (top.0, top.1.min(next.1)),
                    false if next.0 > top.0 || next.0.is_nan() => *next,
                    false => top,
                });
            }
        }
    });
    let device = x.device().clone();
    custom_vjp(&[x], Tensor::from_vec(out, (b, c, z.oh, z.ow), x.device())?, move |grad, _| {
        let grad = grad.contiguous()?;
        let mut out = vec![T::zero(); b * c * plane];
        let rows = data::<T>(&grad)?;
        let rows = rows.par_chunks(pixels).zip(places.par_chunks(pixels)).with_min_len(grain(plane));
        out.par_chunks_mut(plane).zip(rows).for_each(|(out, (grad, places))| {
            grad.iter().zip(places).for_each(|(g, at)| out[*at as usize] += *g);
        });
        Ok(vec![Some(Tensor::from_vec(out, (b, c, z.h, z.w), &device)?)])
    })
}

fn max_composed(x: &Tensor, z: Sizes) -> Result<Tensor> {
    let along = |x: Tensor, dim: usize, count: usize| -> Result<Tensor> {
        let shifted = |i: usize| -> Result<Tensor> {
            let places: Vec<u32> = (0..count).map(|o| (o * z.stride + i) as u32).collect();
            Ok(x.index_select(&Tensor::new(places, x.device())?, dim)?)
        };
        (1..z.size).try_fold(shifted(0)?, |best, i| Ok(best.maximum(&shifted(i)?)?))
    };
    along(along(x.clone(), 2, z.oh)?, 3, z.ow)
}

/// Mean of windows of `size` beside each other, of `x [batch, channels, h, w]` with `padding` zeros, which count, around
/// rows and columns; rows and columns that fill no window are left out.
pub fn avg_pool2d(x: &Tensor, size: usize, padding: [usize; 2]) -> Result<Tensor> {
    let z = Sizes::new("avg_pool2d", x, size, size, padding)?;
    if cuda::takes(x) {
        return cuda::pool::avg_pool2d(x, z.on_cuda());
    }
    on_cpu!(x, avg_cpu(x, z), avg_composed(x, z))
}

fn avg_cpu<T: Real>(x: &Tensor, z: Sizes) -> Result<Tensor> {
    let (b, c, ..) = x.dims4()?;
    let input = x.detach().contiguous()?;
    let (plane, pixels, share) = (z.h * z.w, z.oh * z.ow, T::of(1.0 / (z.size * z.size) as f64));
    let mut out = vec![T::zero(); b * c * pixels];
    let planes = data::<T>(&input)?;
    out.par_chunks_mut(pixels).with_min_len(grain(plane)).zip(planes.par_chunks(plane)).for_each(|(out, x)| {
        z.windows(|i, rows, columns| {
            let sum = rows.fold(T::zero(), |s, row| x[row * z.w..][columns.clone()].iter().fold(s, |s, v| s + *v));
            out[i] = sum * share;
        });
    });
    let device = x.device().clone();
    custom_vjp(&[x], Tensor::from_vec(out, (b, c, z.oh, z.ow), x.device())?, move |grad, _| {
        let grad = grad.contiguous()?;
        let mut out = vec![T::zero(); b * c * plane];
        let rows = data::<T>(&grad)?;
        out.par_chunks_mut(plane).with_min_len(grain(plane)).zip(rows.par_chunks(pixels)).for_each(|(out, grad)| {
            z.windows(|i, rows, columns| rows.for_each(|row| out[row * z.w..][columns.clone()].fill(grad[i] * share)));
        });
        Ok(vec![Some(Tensor::from_vec(out, (b, c, z.h, z.w), &device)?)])
    })
}

fn avg_composed(x: &Tensor, z: Sizes) -> Result<Tensor> {
    let [ph, pw] = z.padding;
    let x = x.pad_with_zeros(2, ph, ph)?.pad_with_zeros(3, pw, pw)?;
    // candle's gradient is right only without a rest
    Ok(x.narrow(2, 0, z.oh * z.size)?.narrow(3, 0, z.ow * z.size)?.avg_pool2d(z.size)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::grad::vjp;
    use crate::tensor::{DType, Device, Rng};

    /// Values and gradients of both ways agree.
    fn same(name: &str, x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>, g: impl Fn(&Tensor) -> Result<Tensor>) {
        let v = Rng::new(2).normal(f(x).unwrap().dims(), DType::F64, &Device::Cpu).unwrap();
        let ((a, da), (b, db)) = (vjp(f, x, &v).unwrap(), vjp(g, x, &v).unwrap());
        for (a, b) in [(a, b), (da, db)] {
            assert_eq!(a.dims(), b.dims(), "{name}");
            let error = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(error < 1e-12, "{name}: {error}");
        }
    }

    #[test]
    fn kernels_equal_compositions() {
        for (h, w) in [(4, 4), (5, 7), (9, 6)] {
            let x = Rng::new(1).normal(&[2, 3, h, w], DType::F64, &Device::Cpu).unwrap();
            for (size, stride) in [(2, 2), (3, 2), (3, 1), (2, 3)] {
                let z = Sizes::new("max", &x, size, stride, [0, 0]).unwrap();
                let name = format!("max {size}/{stride} of {h} x {w}");
                same(&name, &x, |x| max_pool2d(x, size, stride), |x| max_composed(x, z));
            }
            for padding in [[0, 0], [h % 2, w % 2], [1, 1]] {
                let z = Sizes::new("avg", &x, 2, 2, padding).unwrap();
                same(&format!("avg of {h} x {w}"), &x, |x| avg_pool2d(x, 2, padding), |x| avg_composed(x, z));
            }
        }
    }

    #[test]
    fn the_first_maximum_gets_the_gradient_and_odd_sides_a_zero_in_front() {
        let x = Tensor::new(&[[[[1f32, 1.0, 0.0], [1.0, 0.0, 2.0], [4.0, 4.0, 4.0]]]], &Device::Cpu).unwrap();
        let one = Tensor::ones((1, 1, 1, 1), DType::F32, &Device::Cpu).unwrap();
        let (_, gradient) = vjp(|x| max_pool2d(x, 3, 2), &x, &one).unwrap();
        assert_eq!(gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 0., 0., 0., 0., 0., 1., 0., 0.]);
        let mean = avg_pool2d(&x, 2, [1, 1]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(mean, [0.25, 0.25, 1.25, 2.5]);
        assert!(max_pool2d(&x, 4, 1).unwrap_err().message.contains("windows of 4 every 1 do not fit"));
    }
}
