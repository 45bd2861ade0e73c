//! Pooling: the largest or the mean of small windows.

use super::call::{Backend, Inputs, Keeps, Kept, Op, apply, given, there};
use crate::kernel::{Real, data, grain, on_cpu};
use crate::{Array, Tensor, cuda};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::Shape;
use rayon::prelude::*;

/// Sizes of one pooling of `[batch, channels, h, w]`: windows of `size` every `stride`, `oh x ow` of them.
#[derive(Clone, Copy, Debug)]
pub struct PoolShape {
    pub batch: usize,
    pub channels: usize,
    pub h: usize,
    pub w: usize,
    pub size: usize,
    pub stride: usize,
    /// Zeros in front of rows and columns.
    pub padding: [usize; 2],
    pub oh: usize,
    pub ow: usize,
}

impl PoolShape {
    fn new(name: &str, x: &[usize], size: usize, stride: usize, padding: [usize; 2]) -> Result<Self> {
        let [ph, pw] = padding.map(|p| 2 * p);
        match *x {
            [batch, channels, h, w] if size > 0 && stride > 0 && h + ph >= size && w + pw >= size => {
                let (oh, ow) = ((h + ph - size) / stride + 1, (w + pw - size) / stride + 1);
                Ok(Self { batch, channels, h, w, size, stride, padding, oh, ow })
            }
            _ => bail!(Shape, "{name}: windows of {size} every {stride} do not fit input {x:?}"),
        }
    }

    /// The shape that is pooled.
    pub fn input(&self) -> (usize, usize, usize, usize) {
        (self.batch, self.channels, self.h, self.w)
    }

    /// The shape of the result.
    pub fn output(&self) -> (usize, usize, usize, usize) {
        (self.batch, self.channels, self.oh, self.ow)
    }

    /// Numbers of a plane, and of what it is pooled to.
    fn areas(&self) -> (usize, usize) {
        (self.h * self.w, self.oh * self.ow)
    }

    fn results(&self) -> usize {
        self.batch * self.channels * self.oh * self.ow
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
    apply(MaxPool { size, stride }, [Some(x)])
}

struct MaxPool {
    size: usize,
    stride: usize,
}

/// Where in its plane each largest number stands.
enum Places {
    Processor(Vec<u32>),
    /// u32, in the shape of the result.
    Card(Array),
}

impl MaxPool {
    fn sizes(&self, x: &[usize]) -> Result<PoolShape> {
        PoolShape::new("max_pool2d", x, self.size, self.stride, [0, 0])
    }
}

impl Op<1> for MaxPool {
    type More = Places;

    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn shape(&self, [x]: Inputs<1>) -> Result<Shape> {
        Ok(self.sizes(given(x)?.dims())?.output().into())
    }

    fn keeps(&self, _: Backend, [x]: Inputs<1>, _: [bool; 1]) -> Keeps<1> {
        let places = x.and_then(|x| self.sizes(x.dims()).ok()).map_or(0, |z| z.results());
        Keeps::NOTHING.and_bytes(places * size_of::<u32>())
    }

    fn forward(&self, on: Backend, [x]: Inputs<1>, _: [bool; 1]) -> Result<(Array, Places)> {
        let x = given(x)?;
        let z = self.sizes(x.dims())?;
        match on {
            Backend::Card => cuda::pool::largest(x, z).map(|(y, places)| (y, Places::Card(places))),
            _ => on_cpu!(x, largest(x, z)).map(|(y, places)| (y, Places::Processor(places))),
        }
    }

    fn backward(&self, kept: Kept<1, Places>, gradient: &Array, _: [bool; 1]) -> Result<[Option<Array>; 1]> {
        let z = self.sizes(kept.shapes[0])?;
        let gx = match kept.more {
            Places::Card(places) => cuda::pool::largest_back(gradient, places, z),
            Places::Processor(places) => on_cpu!(gradient, largest_back(gradient, places, z)),
        };
        Ok([Some(gx?)])
    }

    fn composed(&self, [x]: [Option<&Tensor>; 1]) -> Result<Tensor> {
        let x = there(x)?;
        let z = self.sizes(x.dims())?;
        let along = |x: Tensor, dim: usize, count: usize| {
            let shifted = |i: usize| every(&x, dim, [i, z.stride, count]);
            (1..z.size).try_fold(shifted(0)?, |best, i| best.maximum(&shifted(i)?))
        };
        along(along(x.clone(), 2, z.oh)?, 3, z.ow)
    }

    fn work(&self, _: Inputs<1>, result: &Shape) -> f64 {
        (result.elem_count() * self.size * self.size) as f64
    }
}

/// `count` entries of `dim`, from `start` on, `step` apart.
pub(super) fn every(x: &Tensor, dim: usize, [start, step, count]: [usize; 3]) -> Result<Tensor> {
    let places: Vec<u32> = (0..count).map(|i| (start + i * step) as u32).collect();
    x.index_select(&Tensor::from_vec(places, count, x.device())?, dim)
}

fn largest<T: Real>(x: &Array, z: PoolShape) -> Result<(Array, Vec<u32>)> {
    let planes = data::<T>(x)?;
    let mut out = vec![T::zero(); z.results()];
    let mut places = vec![0u32; out.len()];
    let (plane, pixels) = z.areas();
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
    Ok((Array::from_vec(out, z.output(), x.device())?, places))
}

fn largest_back<T: Real>(gradient: &Array, places: &[u32], z: PoolShape) -> Result<Array> {
    let (plane, pixels) = z.areas();
    let mut out = vec![T::zero(); z.batch * z.channels * plane];
    let rows = data::<T>(gradient)?;
    let rows = rows.par_chunks(pixels).zip(places.par_chunks(pixels)).with_min_len(grain(plane));
    out.par_chunks_mut(plane).zip(rows).for_each(|(out, (gradient, places))| {
        gradient.iter().zip(places).for_each(|(g, at)| out[*at as usize] += *g);
    });
    Ok(Array::from_vec(out, z.input(), gradient.device())?)
}

/// Mean of windows of `size` beside each other, of `x [batch, channels, h, w]` with `padding` zeros, which count, around
/// rows and columns; rows and columns that fill no window are left out.
pub fn avg_pool2d(x: &Tensor, size: usize, padding: [usize; 2]) -> Result<Tensor> {
    apply(AvgPool { size, padding }, [Some(x)])
}

struct AvgPool {
    size: usize,
    padding: [usize; 2],
}

impl AvgPool {
    fn sizes(&self, x: &[usize]) -> Result<PoolShape> {
        PoolShape::new("avg_pool2d", x, self.size, self.size, self.padding)
    }
}

impl Op<1> for AvgPool {
    type More = ();

    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn shape(&self, [x]: Inputs<1>) -> Result<Shape> {
        Ok(self.sizes(given(x)?.dims())?.output().into())
    }

    fn keeps(&self, _: Backend, _: Inputs<1>, _: [bool; 1]) -> Keeps<1> {
        Keeps::NOTHING
    }

    fn forward(&self, on: Backend, [x]: Inputs<1>, _: [bool; 1]) -> Result<(Array, ())> {
        let x = given(x)?;
        let z = self.sizes(x.dims())?;
        let y = match on {
            Backend::Card => cuda::pool::mean(x, z),
            _ => on_cpu!(x, mean(x, z)),
        };
        Ok((y?, ()))
    }

    fn backward(&self, kept: Kept<1, ()>, gradient: &Array, _: [bool; 1]) -> Result<[Option<Array>; 1]> {
        let z = self.sizes(kept.shapes[0])?;
        let gx = match kept.on {
            Backend::Card => cuda::pool::mean_back(gradient, z),
            _ => on_cpu!(gradient, mean_back(gradient, z)),
        };
        Ok([Some(gx?)])
    }

    fn composed(&self, [x]: [Option<&Tensor>; 1]) -> Result<Tensor> {
        let x = there(x)?;
        let (z, [ph, pw]) = (self.sizes(x.dims())?, self.padding);
        let x = x.pad_with_zeros(2, ph, ph)?.pad_with_zeros(3, pw, pw)?;
        let x = x.narrow(2, 0, z.oh * z.size)?.narrow(3, 0, z.ow * z.size)?;
        let windows = x.reshape((z.batch * z.channels, z.oh, z.size, z.ow, z.size))?;
        windows.mean((2, 4))?.reshape(z.output())
    }

    fn work(&self, _: Inputs<1>, result: &Shape) -> f64 {
        (result.elem_count() * self.size * self.size) as f64
    }
}

fn mean<T: Real>(x: &Array, z: PoolShape) -> Result<Array> {
    let ((plane, pixels), share) = (z.areas(), T::of(1.0 / (z.size * z.size) as f64));
    let mut out = vec![T::zero(); z.results()];
    let planes = data::<T>(x)?;
    out.par_chunks_mut(pixels).with_min_len(grain(plane)).zip(planes.par_chunks(plane)).for_each(|(out, x)| {
        z.windows(|i, rows, columns| {
            let sum = rows.fold(T::zero(), |s, row| x[row * z.w..][columns.clone()].iter().fold(s, |s, v| s + *v));
            out[i] = sum * share;
        });
    });
    Ok(Array::from_vec(out, z.output(), x.device())?)
}

fn mean_back<T: Real>(gradient: &Array, z: PoolShape) -> Result<Array> {
    let ((plane, pixels), share) = (z.areas(), T::of(1.0 / (z.size * z.size) as f64));
    let mut out = vec![T::zero(); z.batch * z.channels * plane];
    let rows = data::<T>(gradient)?;
    out.par_chunks_mut(plane).with_min_len(grain(plane)).zip(rows.par_chunks(pixels)).for_each(|(out, g)| {
        z.windows(|i, rows, columns| rows.for_each(|row| out[row * z.w..][columns.clone()].fill(g[i] * share)));
    });
    Ok(Array::from_vec(out, z.input(), gradient.device())?)
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::cases::case;
    let mut all = Vec::new();
    for (h, w) in [(7, 6), (4, 4), (5, 7), (9, 6)] {
        let shapes: [&[usize]; 1] = [&[2, 3, h, w]];
        for (size, stride) in [(2, 2), (3, 2), (3, 1), (2, 3)] {
            let name = format!("max_pool2d {size}/{stride} of {h} x {w}");
            all.push(case(&name, &shapes, move |i| max_pool2d(&i[0], size, stride)));
        }
        for padding in [[0, 0], [h % 2, w % 2], [1, 0], [1, 1]] {
            let name = format!("avg_pool2d with padding {padding:?} of {h} x {w}");
            all.push(case(&name, &shapes, move |i| avg_pool2d(&i[0], 2, padding)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grad::vjp;
    use crate::{DType, Device};

    fn numbers(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn plane(values: [f64; 9]) -> Tensor {
        Tensor::new(&values, &Device::Cpu).unwrap().reshape((1, 1, 3, 3)).unwrap()
    }

    #[test]
    fn the_first_maximum_gets_the_gradient() {
        let x = plane([1.0, 1.0, 0.0, 1.0, 0.0, 2.0, 4.0, 4.0, 4.0]);
        let one = Tensor::ones((1, 1, 1, 1), DType::F64, &Device::Cpu).unwrap();
        let (_, gradient) = vjp(|x| max_pool2d(x, 3, 2), &x, &one).unwrap();
        assert_eq!(numbers(&gradient), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        // Of equal maxima the first by rows is meant, though its column is the last.
        let x = plane([0.0, 0.0, 2.0, 2.0, 1.0, 0.0, 2.0, 0.0, 0.0]);
        let (value, gradient) = vjp(|x| max_pool2d(x, 3, 1), &x, &(one * 2.0).unwrap()).unwrap();
        assert_eq!(numbers(&value), [2.0]);
        assert_eq!(numbers(&gradient), [0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_number_that_is_none_is_passed_on() {
        let x = plane([0.0, 9.0, 0.0, f64::NAN, 0.0, 0.0, 0.0, 0.0, 9.0]);
        assert!(numbers(&max_pool2d(&x, 3, 1).unwrap())[0].is_nan());
    }

    #[test]
    fn padding_counts_in_the_mean() {
        let x = plane([1.0, 1.0, 0.0, 1.0, 0.0, 2.0, 4.0, 4.0, 4.0]);
        assert_eq!(numbers(&avg_pool2d(&x, 2, [1, 1]).unwrap()), [0.25, 0.25, 1.25, 2.5]);
    }

    #[test]
    fn windows_that_do_not_fit_are_refused() {
        let x = plane([0.0; 9]);
        assert!(max_pool2d(&x, 4, 1).unwrap_err().message.contains("windows of 4 every 1 do not fit"));
        assert!(avg_pool2d(&x, 0, [0, 0]).unwrap_err().message.starts_with("avg_pool2d: windows of 0"));
    }
}
