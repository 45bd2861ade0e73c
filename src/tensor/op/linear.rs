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
    let rows = x.detach().reshape(((), inner))?;
    let frozen = weight.detach();
    let wide = rows.to_dtype(dtype)?;
    let mut y = wide.matmul(&frozen.to_dtype(dtype)?.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.detach().to_dtype(dtype)?)?;
    }
    let adapter = match lora {
        Some(l) => Some(Lora { a: l.a.detach().to_dtype(dtype)?, b: l.b.detach().to_dtype(dtype)?, scale: l.scale }),
        None => None,
    };
    let mut inside = None; // x A^T, [rows, rank]
    if let Some(l) = &adapter {
        let hidden = wide.matmul(&l.a.t()?)?;
        y = (y + (hidden.matmul(&l.b.t()?)? * l.scale)?)?;
        inside = Some(hidden);
    }
    let mut shape = dims.clone();
    shape[dims.len() - 1] = out;
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    inputs.extend(lora.iter().flat_map(|l| [&l.a, &l.b]));
    let own: Vec<DType> = inputs.iter().map(|x| x.dtype()).collect();
    let (has_bias, y) = (bias.is_some(), y.to_dtype(x.dtype())?.reshape(shape)?);
    custom_vjp(&inputs, y, move |grad, wanted| {
        let g = grad.reshape(((), out))?.to_dtype(dtype)?;
        let mut gradients = vec![None; wanted.len()];
        let through = match &adapter {
            Some(l) => Some((l, (g.matmul(&l.b)? * l.scale)?)), // [rows, rank]
            None => None,
        };
        if wanted[0] {
            let mut gx = g.matmul(&frozen.to_dtype(dtype)?)?;
            if let Some((l, gb)) = &through {
                gx = (gx + gb.matmul(&l.a)?)?;
            }
            gradients[0] = Some(gx.reshape(dims.as_slice())?);
        }
        let wide = |wanted: bool| if wanted { rows.to_dtype(dtype).map(Some) } else { Ok(None) };
        if let Some(rows) = wide(wanted[1])? {
            gradients[1] = Some(g.t()?.matmul(&rows)?);
        }
        if has_bias && wanted[2] {
            gradients[2] = Some(bias_gradient(&g)?);
        }
        if let (Some((_, gb)), Some(hidden), Some(l)) = (&through, &inside, &adapter) {
            let at = wanted.len() - 2;
            if let Some(rows) = wide(wanted[at])? {
                gradients[at] = Some(gb.t()?.matmul(&rows)?);
            }
            if wanted[at + 1] {
                gradients[at + 1] = Some((g.t()?.matmul(hidden)? * l.scale)?);
            }
        }
        for (gradient, dtype) in gradients.iter_mut().zip(&own) {
            *gradient = gradient.take().map(|g: Tensor| g.to_dtype(*dtype)).transpose()?;
        }
        Ok(gradients)
    })
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
