//! Matrix product with a frozen or trainable weight, bias, and a low-rank adapter in the same node.

use super::cast::is_half;
use crate::bail;
use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Real, column_sums, data, on_cpu};
use candle_core::{DType, Tensor};

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
    let (rows, frozen) = (x.detach().reshape(((), inner))?, weight.detach());
    let wide = rows.to_dtype(dtype)?;
    let mut y = wide.matmul(&frozen.to_dtype(dtype)?.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.detach().to_dtype(dtype)?)?;
    }
    let mut adapter = None;
    if let Some(l) = lora {
        let l = Lora { a: l.a.detach().to_dtype(dtype)?, b: l.b.detach().to_dtype(dtype)?, scale: l.scale };
        let hidden = wide.matmul(&l.a.t()?)?;
        y = (y + (hidden.matmul(&l.b.t()?)? * l.scale)?)?;
        adapter = Some((l, hidden));
    }
    let mut shape = dims.clone();
    shape[dims.len() - 1] = out;
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    inputs.extend(lora.iter().flat_map(|l| [&l.a, &l.b]));
    let own: Vec<DType> = inputs.iter().map(|x| x.dtype()).collect();
    let (saved, y) = (Saved { rows, weight: frozen, dtype, adapter }, y.to_dtype(x.dtype())?.reshape(shape)?);
    custom_vjp(&inputs, y, move |grad, wanted| {
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
    /// `x`, `[rows, in]`.
    rows: Tensor,
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
            Some((l, _)) => Some((g.matmul(&l.b)? * l.scale)?), // [rows, rank]
            None => None,
        };
        if wanted[0] {
            let gx = g.matmul(&self.weight.to_dtype(self.dtype)?)?;
            gradients[0] = Some(match (&self.adapter, &through) {
                (Some((l, _)), Some(through)) => (gx + through.matmul(&l.a)?)?,
                _ => gx,
            });
        }
        if wanted[1] {
            gradients[1] = Some(g.t()?.matmul(&self.rows.to_dtype(self.dtype)?)?);
        }
        if factors > 2 && wanted[2] {
            gradients[2] = Some(bias_gradient(g)?);
        }
        if let (Some((l, hidden)), Some(through)) = (&self.adapter, &through) {
            if wanted[factors] {
                gradients[factors] = Some(through.t()?.matmul(&self.rows.to_dtype(self.dtype)?)?);
            }
            if wanted[factors + 1] {
                gradients[factors + 1] = Some((g.t()?.matmul(hidden)? * l.scale)?);
            }
        }
        Ok(gradients)
    }
}

/// Sum over the rows of `g [rows, out]`.
fn bias_gradient(g: &Tensor) -> Result<Tensor> {
    on_cpu!(g, bias_gradient_cpu(g), Ok(g.sum(0)?))
}

fn bias_gradient_cpu<T: Real>(g: &Tensor) -> Result<Tensor> {
    let (rows, out) = g.dims2()?;
    let g = g.contiguous()?;
    let g = data::<T>(&g)?;
    Ok(Tensor::from_vec(column_sums(g.len(), rows, out, |i| g[i]), out, &candle_core::Device::Cpu)?)
}
