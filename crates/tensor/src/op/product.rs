//! Products of matrices without a layer around them.

use super::call::{Keeps, Kept, Kernels, apply};
use super::elementary::{Elementary, read};
use crate::{Array, Tensor};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::Result as Candle;

/// Matrices as candle multiplies them: one behind the other, by rows or by columns.
fn straight(x: &Array) -> Candle<Array> {
    if x.is_contiguous() || x.t()?.is_contiguous() { Ok(x.clone()) } else { x.contiguous() }
}

impl Tensor {
    /// `[.., n, k]` times `[.., k, m]` with the same leading dimensions.
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.dims(), other.dims());
        let rank = a.len();
        if rank < 2 || rank != b.len() || a[..rank - 2] != b[..rank - 2] || a[rank - 1] != b[rank - 2] {
            bail!(Shape, "matmul: expected [.., n, k] and [.., k, m], got {a:?} and {b:?}");
        }
        let shape = [&a[..rank - 1], &b[rank - 1..]].concat().into();
        let keeps = Keeps::inputs([other.requires_grad(), self.requires_grad()]);
        let forward = |[a, b]: [&Array; 2]| straight(a)?.matmul(&straight(b)?);
        let backward = |kept: Kept<2, ()>, g: &Array, wanted: [bool; 2]| {
            let left = || straight(g)?.matmul(&straight(&read(kept.inputs[1])?.t()?)?);
            let right = || straight(&read(kept.inputs[0])?.t()?)?.matmul(&straight(g)?);
            Ok([wanted[0].then(left).transpose()?, wanted[1].then(right).transpose()?])
        };
        let (dtype, kernels) = (self.dtype(), Kernels::CANDLE);
        let op = Elementary { name: "matmul", shape, dtype, keeps, kernels, forward, backward };
        apply(op, [Some(self), Some(other)])
    }

    /// [`Tensor::matmul`] with leading dimensions that are 1 or missing repeated.
    pub fn broadcast_matmul(&self, other: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.dims(), other.dims());
        if a.len() < 2 || b.len() < 2 {
            bail!(Shape, "matmul: expected [.., n, k] and [.., k, m], got {a:?} and {b:?}");
        }
        if a.len() == b.len() && a[..a.len() - 2] == b[..b.len() - 2] {
            return self.matmul(other);
        }
        let lead = |dims: &[usize]| candle_core::Shape::from(&dims[..dims.len() - 2]);
        let lead = lead(a).broadcast_shape_binary_op(&lead(b), "matmul")?;
        let whole = |x: &Tensor| {
            let own = &x.dims()[x.rank() - 2..];
            x.broadcast_as([lead.dims(), own].concat())?.contiguous()
        };
        whole(self)?.matmul(&whole(other)?)
    }
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::cases::case;
    vec![
        case("matmul", &[&[3, 5], &[5, 4]], |i| i[0].matmul(&i[1])).elementary(),
        case("matmul of a transpose", &[&[2, 5, 3], &[2, 5, 4]], |i| i[0].t()?.matmul(&i[1])).elementary(),
        case("broadcast matmul", &[&[2, 1, 3, 5], &[4, 5, 2]], |i| i[0].broadcast_matmul(&i[1])).elementary(),
    ]
}
