//! Rotary position embeddings, as consecutive pairs (FLUX) or as halves (Llama, Qwen).

use super::call::{Backend, Inputs, Keeps, Kept, Op, apply, given, there};
use crate::kernel::{Data, Real, data, map_rows, on_cpu};
use crate::{Array, Tensor, cuda};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::{D, Shape};

/// Rotates dimensions `(2 i, 2 i + 1)` of `x [batch, s, heads, d]` by angles given as `cos, sin [s, d / 2]`.
pub fn rope_pairs(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    apply(Rope { pairs: true }, [Some(x), Some(cos), Some(sin)])
}

/// Rotates dimensions `(i, i + d / 2)` of `x [batch, s, heads, d]` by angles given as `cos, sin [s, d / 2]`.
pub fn rope_halves(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    apply(Rope { pairs: false }, [Some(x), Some(cos), Some(sin)])
}

struct Rope {
    pairs: bool,
}

/// Angles have no gradient.
impl Op<3> for Rope {
    type More = ();

    fn name(&self) -> &'static str {
        if self.pairs { "rope_pairs" } else { "rope_halves" }
    }

    fn shape(&self, [x, cos, sin]: Inputs<3>) -> Result<Shape> {
        let x = given(x)?;
        check_angles(x, given(cos)?, given(sin)?)?;
        Ok(x.shape().clone())
    }

    fn keeps(&self, _: Backend, _: Inputs<3>, _: [bool; 3]) -> Keeps<3> {
        Keeps::inputs([false, true, true])
    }

    fn forward(&self, on: Backend, [x, cos, sin]: Inputs<3>, _: [bool; 3]) -> Result<(Array, ())> {
        let (x, cos, sin) = (given(x)?, given(cos)?, given(sin)?);
        let y = match on {
            Backend::Card => cuda::rope::rotate(x, cos, sin, self.pairs, 1.0),
            _ => on_cpu!(x, rotate(x, cos, sin, self.pairs, 1.0)),
        };
        Ok((y?, ()))
    }

    /// A rotation's transpose turns back.
    fn backward(&self, kept: Kept<3, ()>, gradient: &Array, wanted: [bool; 3]) -> Result<[Option<Array>; 3]> {
        let (cos, sin) = (given(kept.inputs[1])?, given(kept.inputs[2])?);
        if !wanted[0] {
            return Ok([const { None }; 3]);
        }
        let gx = match kept.on {
            Backend::Card => cuda::rope::rotate(gradient, cos, sin, self.pairs, -1.0),
            _ => on_cpu!(gradient, rotate(gradient, cos, sin, self.pairs, -1.0)),
        };
        Ok([Some(gx?), None, None])
    }

    fn composed(&self, [x, cos, sin]: [Option<&Tensor>; 3]) -> Result<Tensor> {
        let x = there(x)?;
        let (b, s, h, d) = x.dims4()?;
        let (shape, axis) = if self.pairs { ([b, s, h, d / 2, 2], 4) } else { ([b, s, h, 2, d / 2], 3) };
        let parts = x.reshape(shape.as_slice())?;
        let (x0, x1) = (parts.narrow(axis, 0, 1)?.squeeze(axis)?, parts.narrow(axis, 1, 1)?.squeeze(axis)?);
        let angles = |a: Option<&Tensor>| there(a)?.to_dtype(x.dtype())?.unsqueeze(1); // [s, 1, d / 2]
        let (cos, sin) = (angles(cos)?, angles(sin)?);
        let y0 = (x0.broadcast_mul(&cos)? - x1.broadcast_mul(&sin)?)?;
        let y1 = (x0.broadcast_mul(&sin)? + x1.broadcast_mul(&cos)?)?;
        Tensor::stack(&[y0, y1], if self.pairs { D::Minus1 } else { D::Minus2 })?.reshape((b, s, h, d))
    }

    fn work(&self, _: Inputs<3>, result: &Shape) -> f64 {
        3.0 * result.elem_count() as f64
    }

    fn work_back(&self, inputs: Inputs<3>, result: &Shape, _: [bool; 3]) -> f64 {
        self.work(inputs, result)
    }
}

/// Refuses angles that are not `cos, sin [s, d / 2]` for `x [batch, s, heads, d]`.
pub(super) fn check_angles(x: &Array, cos: &Array, sin: &Array) -> Result<()> {
    let (_, s, _, d) = x.dims4()?;
    if cos.dims() != [s, d / 2] || sin.dims() != cos.dims() || d % 2 != 0 {
        bail!(Shape, "rope: expected angles [{s}, {}], got {:?} and {:?}", d / 2, cos.dims(), sin.dims());
    }
    Ok(())
}

/// Turns `x` by its angles times `way` of 1 or -1.
pub(super) fn rotate<T: Real>(x: &Array, cos: &Array, sin: &Array, pairs: bool, way: f64) -> Result<Array> {
    let turns = Turns::<T>::new(cos, sin, x.dims(), way)?;
    let out = map_rows(&data::<T>(x)?, x.dim(D::Minus1)?, |i, row, out| {
        out.copy_from_slice(row);
        if pairs { turns.pairs(i, out) } else { turns.halves(i, out) }
    });
    Ok(Array::from_vec(out, x.dims(), x.device())?)
}

/// The angles of rows, the heads of `[batch, s, heads, d]`.
pub(super) struct Turns<'a, T> {
    cos: Data<'a, T>,
    sin: Data<'a, T>,
    /// 1, or -1 to turn back.
    way: T,
    tokens: usize,
    heads: usize,
}

impl<'a, T: Real> Turns<'a, T> {
    pub fn new(cos: &'a Array, sin: &'a Array, dims: &[usize], way: f64) -> Result<Self> {
        Ok(Self { cos: data::<T>(cos)?, sin: data::<T>(sin)?, way: T::of(way), tokens: dims[1], heads: dims[2] })
    }

    /// Cosine and sine of each pair of row `i`.
    fn angles(&self, i: usize, half: usize) -> impl Iterator<Item = (T, T)> {
        let at = i / self.heads % self.tokens * half;
        let angles = self.cos[at..at + half].iter().zip(&self.sin[at..at + half]);
        angles.map(|(cos, sin)| (*cos, self.way * *sin))
    }

    /// Turns `(2 i, 2 i + 1)` of the row.
    pub fn pairs(&self, i: usize, row: &mut [T]) {
        let angles = self.angles(i, row.len() / 2);
        for (pair, (cos, sin)) in row.chunks_exact_mut(2).zip(angles) {
            (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
        }
    }

    /// Turns `(i, i + d / 2)` of the row.
    fn halves(&self, i: usize, row: &mut [T]) {
        let half = row.len() / 2;
        let (a, b) = row.split_at_mut(half);
        for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(self.angles(i, half)) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::attention::beside;
    use super::cases::case;
    type Turn = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;
    let mut all = Vec::new();
    for (name, turn) in [("rope_pairs", rope_pairs as Turn), ("rope_halves", rope_halves)] {
        for (batch, s, heads, d) in [(2, 3, 2, 6), (2, 5, 3, 8)] {
            all.push(case(format!("{name} of {s} x {d}"), &[&[batch, s, heads, d]], move |i| {
                let angles = beside(&i[0], &[s, d / 2], 4)?;
                turn(&i[0], &angles.cos()?, &angles.sin()?)
            }));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Device, Rng};

    #[test]
    fn every_pair_is_turned_by_its_angle() -> Result<()> {
        let random = |shape: &[usize], seed| Rng::new(seed).normal(shape, DType::F64, &Device::Cpu);
        let (x, angle) = (random(&[2, 3, 2, 6], 1)?, random(&[3, 3], 2)?);
        for pairs in [true, false] {
            let turn = if pairs { rope_pairs } else { rope_halves };
            let y = turn(&x, &angle.cos()?, &angle.sin()?)?;
            // The last token's second head in the second image.
            let last =
                |t: &Tensor| -> Result<Vec<f64>> { Ok(t.array().flatten_all()?.to_vec1::<f64>()?[66..].to_vec()) };
            let (x, y, turns) = (last(&x)?, last(&y)?, angle.to_vec2::<f64>()?);
            for (j, turn) in turns[2].iter().enumerate() {
                let (a, b) = if pairs { (2 * j, 2 * j + 1) } else { (j, j + 3) };
                assert!((y[a] - (x[a] * turn.cos() - x[b] * turn.sin())).abs() < 1e-12);
                assert!((y[b] - (x[a] * turn.sin() + x[b] * turn.cos())).abs() < 1e-12);
            }
        }
        Ok(())
    }
}
