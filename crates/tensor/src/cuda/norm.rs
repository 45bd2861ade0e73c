//! Normalised rows and groups, softmax of rows, sums of columns, gated residuals.

use super::rope::rotate;
use super::{Arg, File, Grid, Unit, aligned, fresh, launch, like, pack, plain};
use crate::Array;
use crate::op::call::{Inputs, Kept, given};
use crate::op::{Groups, Rows};
use amscript_base::error::Result;
use candle_core::{D, DType};

/// Over the last dimension of x, with weight and bias `[blocks, width]`, which may be of another float type; turned where there are angles.
pub fn rows([x, weight, bias, cos, sin]: Inputs<5>, z: Rows) -> Result<Array> {
    let x = ready(x)?;
    let own = weight.or(bias).map(weight_type);
    let vector = |v: Option<&Array>| v.zip(own).map(|(v, own)| aligned(v, own)).transpose();
    let (w, b, out) = (vector(weight)?, vector(bias)?, like(&x)?);
    let tensors = [Arg::Tensor(&x), Arg::Maybe(w.as_ref()), Arg::Maybe(b.as_ref()), Arg::Tensor(&out)];
    z.launch("normalise", &x, w.as_ref().or(b.as_ref()), tensors, [cos, sin])?;
    Ok(out)
}

/// The gradients of x, weight and bias.
pub fn rows_back(kept: Kept<5, ()>, gradient: &Array, z: Rows, wanted: [bool; 5]) -> Result<[Option<Array>; 5]> {
    let ([x, weight, _, cos, sin], shapes) = (kept.inputs, kept.shapes);
    let x = x.map(|x| ready(Some(x))).transpose()?;
    let mut g = aligned(gradient, x.as_ref().unwrap_or(gradient).dtype())?;
    let block = z.block(g.dims()).min(g.elem_count() / g.dim(D::Minus1)?.max(1));
    let mut gradients = [const { None }; 5];
    if let Some(x) = x.as_ref().filter(|_| wanted[0]) {
        let (w, gx) = (weight.map(|w| aligned(w, weight_type(w))).transpose()?, like(x)?);
        let tensors = [Arg::Tensor(&g), Arg::Tensor(x), Arg::Maybe(w.as_ref()), Arg::Tensor(&gx)];
        z.launch("normalise_back", x, w.as_ref(), tensors, [cos, sin])?;
        gradients[0] = Some(gx);
    }
    if let Some((cos, sin)) = cos.zip(sin).filter(|_| wanted[1] || wanted[2]) {
        g = rotate(&g, cos, sin, true, -1.0)?;
    }
    if let Some(x) = x.as_ref().filter(|_| wanted[1]) {
        gradients[1] = Some(columns(&g, Some(x), Some(&z.moments(x)?), block)?.reshape(shapes[1])?);
    }
    if wanted[2] {
        gradients[2] = Some(columns(&g, None, None, block)?.reshape(shapes[2])?);
    }
    Ok(gradients)
}

fn ready(x: Option<&Array>) -> Result<Array> {
    let x = given(x)?;
    aligned(x, x.dtype())
}

/// The type that weights are read in.
fn weight_type(w: &Array) -> DType {
    if w.dtype() == DType::F64 { DType::F32 } else { w.dtype() }
}

impl Rows {
    /// A kernel of rows: its four tensors, then what all of them take. Angles are of `x [batch, tokens, heads, width]`.
    fn launch(
        &self,
        kernel: &'static str,
        x: &Array,
        w: Option<&Array>,
        tensors: [Arg; 4],
        [cos, sin]: [Option<&Array>; 2],
    ) -> Result<()> {
        let width = x.dim(D::Minus1)?;
        let ready = |a: Option<&Array>| a.map(|a| plain(a, DType::F32)).transpose();
        let (cos, sin) = (ready(cos)?, ready(sin)?);
        // Whole pairs: rows of an even width that begin where wide accesses may allow two numbers at least.
        let pack = pack(width, &[x]).max(if cos.is_some() { 2 } else { 1 });
        let (rows, of) = (x.elem_count() / width.max(1), |dim: usize| if cos.is_some() { x.dims()[dim] } else { 1 });
        let angles = [Arg::Maybe(cos.as_ref()), Arg::Maybe(sin.as_ref())];
        let numbers = [
            Arg::Long(rows),
            Arg::Int(width),
            Arg::Int(of(1)),
            Arg::Int(of(2)),
            Arg::Long(self.block(x.dims())),
            Arg::Int(usize::from(self.centre)),
            Arg::Float(self.more()),
            Arg::Float(self.eps),
        ];
        let args: Vec<Arg> = tensors.into_iter().chain(angles).chain(numbers).collect();
        let unit = Unit::new(File::Rows, x, pack).weights(w);
        launch(x.device(), &unit, kernel, Grid::rows(rows, width, pack), &args)
    }

    /// Mean and 1 / deviation of every row, `[rows, 2]` in f32.
    fn moments(&self, x: &Array) -> Result<Array> {
        let width = x.dim(D::Minus1)?;
        let (rows, pack) = (x.elem_count() / width.max(1), pack(width, &[x]));
        let out = fresh((rows, 2), DType::F32, x.device())?;
        let centre = Arg::Int(usize::from(self.centre));
        let args = [Arg::Tensor(x), Arg::Tensor(&out), Arg::Long(rows), Arg::Int(width), centre, Arg::Float(self.eps)];
        launch(x.device(), &Unit::new(File::Rows, x, pack), "moments", Grid::rows(rows, width, pack), &args)?;
        Ok(out)
    }
}

/// Sums over each block of `rows` rows of g, or of g x, or of g times normalised x: `[blocks, width]` in f32, in a fixed order.
fn columns(g: &Array, x: Option<&Array>, moments: Option<&Array>, rows: usize) -> Result<Array> {
    let width = g.dim(D::Minus1)?;
    let (blocks, chunks) = (g.elem_count() / (rows * width).max(1), rows.div_ceil(256).max(1));
    let out = fresh((blocks, chunks, width), DType::F32, g.device())?;
    let grid = Grid { blocks: [width.div_ceil(32), chunks, blocks], threads: [32, 8], shared: 0 };
    let args =
        [Arg::Tensor(g), Arg::Maybe(x), Arg::Maybe(moments), Arg::Tensor(&out), Arg::Long(rows), Arg::Int(width)];
    launch(g.device(), &Unit::new(File::Rows, g, 1), "columns", grid, &args)?;
    Ok(if chunks == 1 { out.squeeze(1)? } else { out.sum(1)? })
}

/// Sum over the rows of `g [rows, width]`, added up in f32.
pub fn column_sums(g: &Array) -> Result<Array> {
    let g = plain(g, g.dtype())?;
    Ok(columns(&g, None, None, g.dim(0)?)?.squeeze(0)?.to_dtype(g.dtype())?)
}

/// Softmax over the last dimension, without a graph.
pub fn softmax(x: &Array) -> Result<Array> {
    let x = aligned(x, x.dtype())?;
    let out = like(&x)?;
    softmax_kernel("softmax", &x, &[&x, &out])?;
    Ok(out)
}

/// The gradient of softmax's input, from that of its output `y`.
pub fn softmax_back(grad: &Array, y: &Array) -> Result<Array> {
    let (grad, y) = (aligned(grad, y.dtype())?, aligned(y, y.dtype())?);
    let out = like(&y)?;
    softmax_kernel("softmax_back", &y, &[&grad, &y, &out])?;
    Ok(out)
}

fn softmax_kernel(kernel: &'static str, x: &Array, tensors: &[&Array]) -> Result<()> {
    let width = x.dim(D::Minus1)?;
    let (rows, pack) = (x.elem_count() / width.max(1), pack(width, &[x]));
    let tensors = tensors.iter().map(|x| Arg::Tensor(x));
    let args: Vec<Arg> = tensors.chain([Arg::Long(rows), Arg::Int(width)]).collect();
    launch(x.device(), &Unit::new(File::Rows, x, pack), kernel, Grid::rows(rows, width, pack), &args)
}

/// Group normalisation of x `[batch, channels, ..]`, with SiLU behind it if `gated`.
pub fn groups([x, weight, bias]: Inputs<3>, z: Groups) -> Result<Array> {
    let all = Grouped::new([x, weight, bias], z)?;
    let out = like(&all.x)?;
    all.launch("group", [Arg::Tensor(&all.x), Arg::Tensor(&all.w), Arg::Tensor(&all.b), Arg::Tensor(&out)])?;
    Ok(out)
}

/// The gradients of x, weight and bias.
pub fn groups_back(inputs: Inputs<3>, gradient: &Array, z: Groups, wanted: [bool; 3]) -> Result<[Option<Array>; 3]> {
    let all = Grouped::new(inputs, z)?;
    let (g, gx) = (aligned(gradient, all.x.dtype())?, like(&all.x)?);
    let (batch, channels) = (g.dim(0)?, g.dim(1)?);
    let sums = match wanted[1] || wanted[2] {
        true => Some(fresh((2, batch, channels), DType::F32, g.device())?),
        false => None,
    };
    let tensors = [&g, &all.x, &all.w, &all.b, &gx].map(Arg::Tensor);
    all.launch("group_back", tensors.into_iter().chain([Arg::Maybe(sums.as_ref())]))?;
    let of = |i: usize| -> Result<Option<Array>> {
        let Some(sums) = sums.as_ref().filter(|_| wanted[i + 1]) else { return Ok(None) };
        Ok(Some(sums.get(i)?.sum(0)?.reshape(given(inputs[i + 1])?.dims())?))
    };
    Ok([Some(gx).filter(|_| wanted[0]), of(0)?, of(1)?])
}

/// What the kernels of groups take.
struct Grouped {
    x: Array,
    w: Array,
    b: Array,
    z: Groups,
}

impl Grouped {
    fn new([x, weight, bias]: Inputs<3>, z: Groups) -> Result<Self> {
        let (weight, x) = (given(weight)?, ready(x)?);
        let own = weight_type(weight);
        Ok(Self { x, w: plain(weight, own)?, b: plain(given(bias)?, own)?, z })
    }

    /// A kernel of groups: its tensors, then what all of them take.
    fn launch<'a>(&self, kernel: &'static str, tensors: impl IntoIterator<Item = Arg<'a>>) -> Result<()> {
        let (share, pixels) = self.z.sizes(self.x.dims());
        let unit = Unit::new(File::Groups, &self.x, pack(pixels, &[&self.x])).weights(Some(&self.w));
        let threads = (share * pixels / unit.pack).next_multiple_of(32).clamp(32, 1024);
        let grid = Grid { blocks: [self.x.dim(0)? * self.z.groups, 1, 1], threads: [threads, 1], shared: 0 };
        let numbers = [
            Arg::Int(self.z.groups),
            Arg::Int(share),
            Arg::Long(pixels),
            Arg::Int(usize::from(self.z.gated)),
            Arg::Float(self.z.eps),
        ];
        let args: Vec<Arg> = tensors.into_iter().chain(numbers).collect();
        launch(self.x.device(), &unit, kernel, grid, &args)
    }
}

/// `x + gate y`, or `gate y`, for x and y `[batch, tokens, d]` and gate `[batch, d]`.
pub fn gated(x: Option<&Array>, gate: &Array, y: &Array) -> Result<Array> {
    let dtype = x.unwrap_or(y).dtype();
    let x = x.map(|x| aligned(x, dtype)).transpose()?;
    let (gate, y) = (aligned(gate, dtype)?, aligned(y, dtype)?);
    let ((_, tokens, width), out, pack) = (y.dims3()?, like(&y)?, pack(y.dim(D::Minus1)?, &[&y]));
    let n = y.elem_count() / pack;
    let tensors = [Arg::Maybe(x.as_ref()), Arg::Tensor(&gate), Arg::Tensor(&y), Arg::Tensor(&out)];
    let args: Vec<Arg> = tensors.into_iter().chain([Arg::Long(n), Arg::Int(tokens), Arg::Int(width)]).collect();
    launch(y.device(), &Unit::new(File::Points, &y, pack), "gated", Grid::each(n), &args)?;
    Ok(out)
}

/// The gradient of a gate.
pub fn gate_back(gradient: &Array, y: &Array) -> Result<Array> {
    let (_, tokens, _) = gradient.dims3()?;
    let (gradient, y) = (aligned(gradient, gradient.dtype())?, aligned(y, gradient.dtype())?);
    columns(&gradient, Some(&y), None, tokens)
}
