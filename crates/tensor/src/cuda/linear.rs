//! Matrix products by cuBLAS, accumulated in f32 and added to what is there.

use super::{Arg, File, Grid, Unit, aligned, fresh, launch, pack, plain};
use crate::Array;
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::DType;

/// Matrices inside a tensor, one for each of a batch: distances between rows, columns and matrices, in numbers.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub of: &'a Array,
    /// Where the first one begins, after the tensor's own beginning.
    pub start: usize,
    pub row: usize,
    pub column: usize,
    pub matrix: usize,
}

impl<'a> Part<'a> {
    /// Rows one behind the other, `width` numbers each.
    pub fn rows(of: &'a Array, width: usize) -> Self {
        Self { of, start: 0, row: width, column: 1, matrix: 0 }
    }

    pub fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    pub fn every(self, matrix: usize) -> Self {
        Self { matrix, ..self }
    }

    pub fn from(self, start: usize) -> Self {
        Self { start, ..self }
    }
}

/// `c = keep c + factor a b` for each of `batch` matrices; `size` is (m, k, n). Rows or columns of `a` and `b` are contiguous, rows of `c` too.
pub fn multiply(
    size: (usize, usize, usize),
    a: Part,
    b: Part,
    c: Part,
    batch: usize,
    [factor, keep]: [f64; 2],
) -> Result<()> {
    if a.of.dtype() != b.of.dtype() || c.column != 1 || [a, b].iter().any(|p| p.row != 1 && p.column != 1) {
        bail!(
            Internal,
            "multiply: expected matrices of one type with contiguous rows or columns, got {:?}",
            a.of.dtype()
        );
    }
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(card) = c.of.device() {
        let product = || super::driver::multiply(card, size, [a, b, c], batch, [factor, keep]);
        return super::card::with_room(card, product); // cuBLAS takes memory of its own when it first needs it
    }
    let distances = (size, batch, factor, keep, [a, b, c].map(|p| (p.start, p.matrix)));
    bail!(Internal, "multiply: expected a CUDA device, got {:?}", c.of.device(); hint: "{distances:?}")
}

/// `a b + bias + factor c d` of matrices of any strides, computed in the type of `a`; `bias` is added to every row.
pub fn product(a: &Array, b: &Array, bias: Option<&Array>, also: Option<(&Array, &Array, f64)>) -> Result<Array> {
    let ((m, k), n) = (a.dims2()?, b.dim(1)?);
    let out = fresh((m, n), a.dtype(), a.device())?;
    if let Some(bias) = bias {
        let bias = aligned(bias, a.dtype())?;
        let pack = pack(n, &[&bias]);
        let packs = m * n / pack;
        let args = [Arg::Tensor(&bias), Arg::Tensor(&out), Arg::Long(packs), Arg::Int(n)];
        launch(a.device(), &Unit::new(File::Points, a, pack), "repeat", Grid::each(packs), &args)?;
    }
    let c = Part::rows(&out, n);
    let keep = if bias.is_some() { 1.0 } else { 0.0 };
    let (left, right) = (straight(a, a.dtype())?, straight(b, a.dtype())?);
    multiply((m, k, n), whole(&left), whole(&right), c, 1, [1.0, keep])?;
    if let Some((x, y, factor)) = also {
        let (left, right) = (straight(x, a.dtype())?, straight(y, a.dtype())?);
        multiply((m, x.dim(1)?, n), whole(&left), whole(&right), c, 1, [factor, 1.0])?;
    }
    Ok(out)
}

/// A matrix of this type whose rows or columns are contiguous.
fn straight(x: &Array, dtype: DType) -> Result<Array> {
    let x = x.to_dtype(dtype)?;
    let ([rows, columns], [row, column]) = ([x.dim(0)?, x.dim(1)?], [x.stride()[0], x.stride()[1]]);
    // Repeated rows or columns, whose stride is 0, are no matrix for cuBLAS.
    let whole = column == 1 && (row >= columns || rows == 1) || row == 1 && (column >= rows || columns == 1);
    Ok(if whole { x } else { x.force_contiguous()? })
}

fn whole(x: &Array) -> Part<'_> {
    let (row, column) = (x.stride()[0], x.stride()[1]);
    Part { of: x, start: 0, row, column, matrix: 0 }
}

/// A product of `g^T x` for rows of both, summed in f32: the gradient of a weight.
pub fn rows_product(g: &Array, x: &Array) -> Result<Array> {
    let ((rows, out), inner) = (g.dims2()?, x.dim(1)?);
    let (g, x) = (plain(g, g.dtype())?, plain(x, g.dtype())?);
    let sum = fresh((out, inner), DType::F32, g.device())?;
    let (g, x) = (Part::rows(&g, out).transposed(), Part::rows(&x, inner));
    multiply((out, rows, inner), g, x, Part::rows(&sum, inner), 1, [1.0, 0.0])?;
    Ok(sum)
}
