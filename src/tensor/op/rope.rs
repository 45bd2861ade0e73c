//! Rotary position embeddings, as consecutive pairs (FLUX) or as halves (Llama, Qwen).

use super::cast::wide;
use crate::bail;
use crate::error::Result;
use crate::tensor::cuda;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Real, data, map_rows, on_cpu};
use candle_core::{D, Tensor};

/// Rotates dimensions `(2 i, 2 i + 1)` of `x [batch, s, heads, d]` by angles given as `cos, sin [s, d / 2]`.
pub fn rope_pairs(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    turned(x, cos, sin, true)
}

/// Rotates dimensions `(i, i + d / 2)` of `x [batch, s, heads, d]` by angles given as `cos, sin [s, d / 2]`.
pub fn rope_halves(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    turned(x, cos, sin, false)
}

fn turned(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: bool) -> Result<Tensor> {
    let (_, s, _, d) = x.dims4()?;
    if cos.dims() != [s, d / 2] || sin.dims() != cos.dims() || d % 2 != 0 {
        bail!(Shape, "rope: expected angles [{s}, {}], got {:?} and {:?}", d / 2, cos.dims(), sin.dims());
    }
    if cuda::takes(x) {
        return cuda::rope::rope(x, cos, sin, pairs);
    }
    wide([x], |[x]| rope(x, cos, sin, pairs))
}

fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: bool) -> Result<Tensor> {
    let angles = [cos, sin].map(|a| a.detach().to_dtype(x.dtype()).and_then(|a| a.contiguous()));
    let [cos, sin] = angles;
    let (cos, sin) = (cos?, sin?);
    let out = rotate(&x.detach(), &cos, &sin, pairs)?;
    // A rotation's transpose turns back.
    custom_vjp(&[x], out, move |grad, _| Ok(vec![Some(rotate(grad, &cos, &sin.neg()?, pairs)?)]))
}

fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: bool) -> Result<Tensor> {
    on_cpu!(x, rotate_cpu(x, cos, sin, pairs), rotate_composed(x, cos, sin, pairs))
}

fn rotate_composed(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: bool) -> Result<Tensor> {
    let (b, s, h, d) = x.dims4()?;
    let (shape, axis) = if pairs { ((b, s, h, d / 2, 2), 4) } else { ((b, s, h, 2, d / 2), 3) };
    let parts = x.reshape(shape)?;
    let (x0, x1) = (parts.narrow(axis, 0, 1)?.squeeze(axis)?, parts.narrow(axis, 1, 1)?.squeeze(axis)?);
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?); // [s, 1, d / 2]
    let y0 = (x0.broadcast_mul(&cos)? - x1.broadcast_mul(&sin)?)?;
    let y1 = (x0.broadcast_mul(&sin)? + x1.broadcast_mul(&cos)?)?;
    Ok(Tensor::stack(&[y0, y1], if pairs { D::Minus1 } else { D::Minus2 })?.reshape((b, s, h, d))?)
}

fn rotate_cpu<T: Real>(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: bool) -> Result<Tensor> {
    let (_, s, h, d) = x.dims4()?;
    let x = x.contiguous()?;
    let (cos, sin) = (data::<T>(cos)?, data::<T>(sin)?);
    let (half, token) = (d / 2, h * d);
    let out = map_rows(&data::<T>(&x)?, token, |i, row, out| {
        let at = i % s * half;
        let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
        for (head, out) in row.chunks(d).zip(out.chunks_mut(d)) {
            let angles = cos.iter().zip(sin);
            if pairs {
                for ((out, x), (cos, sin)) in out.chunks_exact_mut(2).zip(head.chunks_exact(2)).zip(angles) {
                    (out[0], out[1]) = (x[0] * *cos - x[1] * *sin, x[0] * *sin + x[1] * *cos);
                }
            } else {
                let ((a, b), (x, y)) = (out.split_at_mut(half), head.split_at(half));
                for ((a, b), ((x, y), (cos, sin))) in a.iter_mut().zip(b).zip(x.iter().zip(y).zip(angles)) {
                    (*a, *b) = (*x * *cos - *y * *sin, *x * *sin + *y * *cos);
                }
            }
        }
    });
    Ok(Tensor::from_vec(out, x.dims(), x.device())?)
}
