//! Matrix product with a frozen or trainable weight, bias, and a low-rank adapter in the same node.

use super::cast::is_half;
use crate::bail;
use crate::error::Result;
use crate::tensor::cuda;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{self, Matrix, Real, Shared, column_sums, data, fresh, on_cpu, shares, strided};
use candle_core::{DType, Tensor};
use rayon::prelude::*;

/// A low-rank change of a weight: `scale * b a`, with `a [rank, in]` and `b [out, rank]`.
#[derive(Clone, Debug)]
pub struct Lora {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f64,
}

/// `y = x W^T + bias + scale (x A^T) B^T` for `x [.., in]`, `weight [out, in]`; returns `[.., out]` in `x`'s type.
///
/// Weight, bias and adapter may be of other float types: they are cast for the product and not kept so; gradients come in
/// their own. Half-precision products on the CPU are computed in f32.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, lora: Option<&Lora>) -> Result<Tensor> {
    let (out, inner) = weight.dims2()?;
    let dims = x.dims().to_vec();
    if dims.last() != Some(&inner) {
        bail!(Shape, "linear: expected {inner} input features, got shape {dims:?}");
    }
    let dtype = if is_half(x.dtype()) && x.device().is_cpu() { DType::F32 } else { x.dtype() };
    let cast = |x: &Tensor| x.detach().to_dtype(dtype);
    let rows = x.detach().reshape(((), inner))?;
    let wide = rows.to_dtype(dtype)?;
    let adapter = match lora {
        Some(l) => {
            let l = Lora { a: cast(&l.a)?, b: cast(&l.b)?, scale: l.scale };
            let hidden = product(&wide, &l.a.t()?, None, None)?;
            Some((l, hidden))
        }
        None => None,
    };
    let low_rank = match &adapter {
        Some((l, hidden)) => Some((hidden, &l.b.t()?, l.scale)),
        None => None,
    };
    let y = product(&wide, &cast(weight)?.t()?, bias.map(cast).transpose()?.as_ref(), low_rank)?;
    let mut shape = dims.clone();
    shape[dims.len() - 1] = out;
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    inputs.extend(lora.iter().flat_map(|l| [&l.a, &l.b]));
    let own: Vec<DType> = inputs.iter().map(|x| x.dtype()).collect();
    // Frozen layers need no input to go back through.
    let needed = weight.track_op() || lora.is_some_and(|l| l.a.track_op());
    let saved = Saved { rows: needed.then_some(rows), weight: weight.detach(), dtype, adapter };
    custom_vjp(&inputs, y.to_dtype(x.dtype())?.reshape(shape)?, move |grad, wanted| {
        let mut gradients = saved.gradients(&grad.reshape(((), out))?.to_dtype(dtype)?, wanted)?;
        for (gradient, dtype) in gradients.iter_mut().zip(&own) {
            *gradient = gradient.take().map(|g| g.to_dtype(*dtype)).transpose()?;
        }
        if let Some(gx) = &mut gradients[0] {
            *gx = gx.reshape(dims.as_slice())?;
        }
        Ok(gradients)
    })
}

/// What the backward needs.
struct Saved {
    /// `x`, `[rows, in]`, where a factor of it is trained.
    rows: Option<Tensor>,
    weight: Tensor,
    /// The type that products are computed in.
    dtype: DType,
    /// With `x A^T`, `[rows, rank]`.
    adapter: Option<(Lora, Tensor)>,
}

impl Saved {
    /// For `g [rows, out]`: gradients of `x` (as rows), weight, bias if there is one, A and B if they are there.
    fn gradients(&self, g: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let mut gradients = vec![None; wanted.len()];
        let factors = if self.adapter.is_some() { wanted.len() - 2 } else { wanted.len() };
        let through = match &self.adapter {
            Some((l, _)) => Some(product(g, &(&l.b * l.scale)?, None, None)?), // [rows, rank]
            None => None,
        };
        let with_rows = |left: &Tensor| match &self.rows {
            Some(rows) => rows_product(left, &rows.to_dtype(self.dtype)?),
            None => bail!(Internal, "linear: the input of a trained layer must be kept, got none"),
        };
        if wanted[0] {
            let low_rank = self.adapter.as_ref().zip(through.as_ref()).map(|((l, _), through)| (through, &l.a, 1.0));
            gradients[0] = Some(product(g, &self.weight.to_dtype(self.dtype)?, None, low_rank)?);
        }
        if wanted[1] {
            gradients[1] = Some(with_rows(g)?);
        }
        if factors > 2 && wanted[2] {
            gradients[2] = Some(bias_gradient(g)?);
        }
        if let (Some((l, hidden)), Some(through)) = (&self.adapter, &through) {
            if wanted[factors] {
                gradients[factors] = Some(with_rows(through)?);
            }
            if wanted[factors + 1] {
                gradients[factors + 1] = Some(rows_product(g, &(hidden * l.scale)?)?);
            }
        }
        Ok(gradients)
    }
}

/// A product of matrices with a factor.
type Scaled<'a> = (&'a Tensor, &'a Tensor, f64);

/// `a b + bias + factor c d` for matrices of any strides and a `bias` per column.
fn product(a: &Tensor, b: &Tensor, bias: Option<&Tensor>, also: Option<Scaled>) -> Result<Tensor> {
    if cuda::takes(a) {
        return cuda::linear::product(a, b, bias, also);
    }
    on_cpu!(a, product_cpu(a, b, bias, also), {
        let mut y = a.matmul(b)?;
        if let Some(bias) = bias {
            y = y.broadcast_add(bias)?;
        }
        if let Some((c, d, factor)) = also {
            y = (y + (c.matmul(d)? * factor)?)?;
        }
        Ok(y)
    })
}

fn product_cpu<T: Real>(a: &Tensor, b: &Tensor, bias: Option<&Tensor>, also: Option<Scaled>) -> Result<Tensor> {
    let ((m, k), n) = (a.dims2()?, b.dim(1)?);
    let bias = bias.map(|bias| bias.contiguous()).transpose()?;
    let bias = bias.as_ref().map(data::<T>).transpose()?;
    let parts = (strided::<T>(a)?, strided::<T>(b)?);
    let more = match also {
        Some((c, d, factor)) => Some((c, d, factor, strided::<T>(c)?, strided::<T>(d)?)),
        None => None,
    };
    let out = fresh(m * n, |out| {
        let (a, b, c) = (Matrix::of(a, &parts.0), Matrix::of(b, &parts.1), Shared(out.as_mut_ptr()));
        let more = more.as_ref().map(|(c, d, factor, l, r)| (Matrix::of(c, l), Matrix::of(d, r), c.dims()[1], *factor));
        // SAFETY: the shapes of the tensors; every share writes its own part of the new output.
        shares((m, k, n)).into_par_iter().for_each(|(rows, columns)| unsafe {
            let (i, j, size) = (rows.start, columns.start, [rows.len(), columns.len()]);
            if let Some(bias) = &bias {
                rows.for_each(|row| {
                    std::slice::from_raw_parts_mut(c.at(row * n + j), size[1]).copy_from_slice(&bias[columns.clone()])
                });
            }
            let c = (c.at(i * n + j), n);
            kernel::product((size[0], k, size[1]), a.part(i, 0), b.part(0, j), c, bias.is_some(), 1.0);
            if let Some((left, right, k, factor)) = more {
                kernel::product((size[0], k, size[1]), left.part(i, 0), right.part(0, j), c, true, factor);
            }
        });
    });
    Ok(Tensor::from_vec(out, (m, n), a.device())?)
}

/// `g^T x` for rows of both.
fn rows_product(g: &Tensor, x: &Tensor) -> Result<Tensor> {
    match cuda::takes(g) {
        true => cuda::linear::rows_product(g, x),
        false => product(&g.t()?, x, None, None),
    }
}

/// Sum over the rows of `g [rows, out]`.
fn bias_gradient(g: &Tensor) -> Result<Tensor> {
    if cuda::takes(g) {
        return cuda::norm::column_sums(g);
    }
    on_cpu!(g, bias_gradient_cpu(g), Ok(g.sum(0)?))
}

fn bias_gradient_cpu<T: Real>(g: &Tensor) -> Result<Tensor> {
    let (rows, out) = g.dims2()?;
    let g = g.contiguous()?;
    let g = data::<T>(&g)?;
    Ok(Tensor::from_vec(column_sums(g.len(), rows, out, |i| g[i]), out, &candle_core::Device::Cpu)?)
}
