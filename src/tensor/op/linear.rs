//! Matrix product with a frozen or trainable weight, bias, and a low-rank adapter in the same node.

use crate::bail;
use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Real, column_sums, data, on_cpu};
use candle_core::Tensor;

/// A low-rank change of a weight: `scale * b a`, with `a [rank, in]` and `b [out, rank]`.
#[derive(Clone, Debug)]
pub struct Lora {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f64,
}

/// `y = x W^T + bias + scale (x A^T) B^T` for `x [.., in]`, `weight [out, in]`; returns `[.., out]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, lora: Option<&Lora>) -> Result<Tensor> {
    let (out, inner) = weight.dims2()?;
    let dims = x.dims().to_vec();
    if dims.last() != Some(&inner) {
        bail!(Shape, "linear: expected {inner} input features, got shape {dims:?}");
    }
    let rows = x.detach().reshape(((), inner))?;
    let frozen = weight.detach();
    let mut y = rows.matmul(&frozen.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.detach())?;
    }
    let adapter = lora.map(|l| Lora { a: l.a.detach(), b: l.b.detach(), scale: l.scale });
    let mut inside = None; // x A^T, [rows, rank]
    if let Some(l) = &adapter {
        let hidden = rows.matmul(&l.a.t()?)?;
        y = (y + (hidden.matmul(&l.b.t()?)? * l.scale)?)?;
        inside = Some(hidden);
    }
    let mut shape = dims.clone();
    shape[dims.len() - 1] = out;
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    inputs.extend(lora.iter().flat_map(|l| [&l.a, &l.b]));
    let has_bias = bias.is_some();
    custom_vjp(&inputs, y.reshape(shape)?, move |grad, wanted| {
        let g = grad.reshape(((), out))?;
        let mut gradients = vec![None; wanted.len()];
        let through = match &adapter {
            Some(l) => Some((l, (g.matmul(&l.b)? * l.scale)?)), // [rows, rank]
            None => None,
        };
        if wanted[0] {
            let mut gx = g.matmul(&frozen)?;
            if let Some((l, gb)) = &through {
                gx = (gx + gb.matmul(&l.a)?)?;
            }
            gradients[0] = Some(gx.reshape(dims.as_slice())?);
        }
        if wanted[1] {
            gradients[1] = Some(g.t()?.matmul(&rows)?);
        }
        if has_bias && wanted[2] {
            gradients[2] = Some(bias_gradient(&g)?);
        }
        if let (Some((l, gb)), Some(hidden)) = (&through, &inside) {
            let at = wanted.len() - 2;
            if wanted[at] {
                gradients[at] = Some(gb.t()?.matmul(&rows)?);
            }
            if wanted[at + 1] {
                gradients[at + 1] = Some((g.t()?.matmul(hidden)? * l.scale)?);
            }
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
