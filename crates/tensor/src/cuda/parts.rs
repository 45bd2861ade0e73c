//! Parts of tensors that stay in one piece, copied by rows. candle asks of every number where it comes from.

use super::{Arg, File, Grid, Unit, fresh, launch, pack};
use crate::Array;
use amscript_base::error::Result;

/// Whether parts along this dimension are rows of several.
pub fn takes(x: &Array, dim: usize) -> bool {
    super::takes(x) && x.is_contiguous() && x.elem_count() > 0 && x.dims()[..dim].iter().product::<usize>() > 1
}

/// `width` numbers of each of `rows` rows, which begin `steps` numbers apart in `x` and in `y`.
fn copy(x: &Array, y: &Array, rows: usize, width: usize, steps: [usize; 2]) -> Result<()> {
    let pack = match pack(width, &[x, y]) {
        pack if steps.iter().all(|step| step.is_multiple_of(pack)) => pack,
        _ => 1,
    };
    let sizes = [Arg::Int(rows), Arg::Int(width / pack)];
    let args: Vec<Arg> =
        [Arg::Tensor(x), Arg::Tensor(y)].into_iter().chain(sizes).chain(steps.map(Arg::Long)).collect();
    launch(x.device(), &Unit::new(File::Points, x, pack), "parts", Grid::lines(rows, width / pack), &args)
}

/// All numbers from number `start` on, one behind the other.
fn from(x: &Array, start: usize) -> Result<Array> {
    Ok(x.flatten_all()?.narrow(0, start, x.elem_count() - start)?)
}

/// `len` entries of dimension `dim` from `start` on.
pub fn cut(x: &Array, dim: usize, start: usize, len: usize) -> Result<Array> {
    let mut dims = x.dims().to_vec();
    let (rows, inner): (usize, usize) = (dims[..dim].iter().product(), dims[dim + 1..].iter().product());
    let row = dims[dim] * inner;
    dims[dim] = len;
    let out = fresh(dims, x.dtype(), x.device())?;
    if len > 0 {
        copy(&from(x, start * inner)?, &out, rows, len * inner, [row, len * inner])?;
    }
    Ok(out)
}

/// Arrays of one type that are alike but for dimension `dim`, one behind the other along it.
pub fn joined(parts: &[&Array], dim: usize) -> Result<Array> {
    let mut dims = parts[0].dims().to_vec();
    let (rows, inner): (usize, usize) = (dims[..dim].iter().product(), dims[dim + 1..].iter().product());
    dims[dim] = parts.iter().map(|x| x.dims()[dim]).sum();
    let row = dims[dim] * inner;
    let out = fresh(dims, parts[0].dtype(), parts[0].device())?;
    let mut start = 0;
    for x in parts {
        let width = x.dims()[dim] * inner;
        copy(x, &from(&out, start)?, rows, width, [width, row])?;
        start += width;
    }
    Ok(out)
}
