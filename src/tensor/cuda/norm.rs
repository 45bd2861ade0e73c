//! Normalised rows and groups, softmax of rows, sums of columns, gated residuals.

use super::{Arg, File, Grid, Unit, aligned, fresh, launch, like, pack, plain};
use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use candle_core::{D, DType, Tensor};

/// One normalisation of rows: `(x - mean) / deviation * (more + weight) + bias`.
#[derive(Clone, Copy)]
pub struct Rows {
    /// Rows that share a weight and a bias.
    pub block: usize,
    /// To zero mean.
    pub centre: bool,
    /// 1 where the weight is a change of scale, else 0.
    pub more: f64,
    pub eps: f64,
}

/// Over the last dimension of `x`, with weight and bias `[blocks, width]`; they may be of another float type.
pub fn norm_rows(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, z: Rows) -> Result<Tensor> {
    let input = aligned(x, x.dtype())?;
    let own = weight.or(bias).map_or(x.dtype(), |w| if w.dtype() == DType::F64 { DType::F32 } else { w.dtype() });
    let w = weight.map(|w| aligned(w, own)).transpose()?;
    let b = bias.map(|b| aligned(b, own)).transpose()?;
    let width = x.dim(D::Minus1)?;
    let out = like(&input)?;
    let args = [Arg::Tensor(&input), Arg::Maybe(w.as_ref()), Arg::Maybe(b.as_ref()), Arg::Tensor(&out)];
    z.launch("normalise", &input, w.as_ref().or(b.as_ref()), args)?;
    let mut inputs = vec![x];
    inputs.extend(weight);
    inputs.extend(bias);
    let types: Vec<(DType, Vec<usize>)> = inputs.iter().map(|x| (x.dtype(), x.dims().to_vec())).collect();
    let places = [weight.map(|_| 1), bias.map(|_| types.len() - 1)];
    custom_vjp(&inputs, out, move |grad, wanted| {
        let grad = aligned(grad, input.dtype())?;
        let mut gradients = vec![None; wanted.len()];
        if wanted[0] {
            let gx = like(&input)?;
            let args = [Arg::Tensor(&grad), Arg::Tensor(&input), Arg::Maybe(w.as_ref()), Arg::Tensor(&gx)];
            z.launch("normalise_back", &input, w.as_ref(), args)?;
            gradients[0] = Some(gx);
        }
        let block = z.block.min(input.elem_count() / width.max(1));
        if let Some(at) = places[0].filter(|at| wanted[*at]) {
            let sums = columns(&grad, Some(&input), Some(&z.moments(&input)?), block)?;
            gradients[at] = Some(sums.to_dtype(types[at].0)?.reshape(types[at].1.as_slice())?);
        }
        if let Some(at) = places[1].filter(|at| wanted[*at]) {
            let sums = columns(&grad, None, None, block)?;
            gradients[at] = Some(sums.to_dtype(types[at].0)?.reshape(types[at].1.as_slice())?);
        }
        Ok(gradients)
    })
}

impl Rows {
    /// A kernel of rows: its four tensors, then what all of them take.
    fn launch(&self, kernel: &'static str, x: &Tensor, w: Option<&Tensor>, tensors: [Arg; 4]) -> Result<()> {
        let width = x.dim(D::Minus1)?;
        let (rows, pack) = (x.elem_count() / width.max(1), pack(width, &[x]));
        let unit = Unit::new(File::Rows, x, pack).weights(w);
        let numbers = [
            Arg::Long(rows),
            Arg::Int(width),
            Arg::Long(self.block),
            Arg::Int(usize::from(self.centre)),
            Arg::Float(self.more),
            Arg::Float(self.eps),
        ];
        let args: Vec<Arg> = tensors.into_iter().chain(numbers).collect();
        launch(x.device(), &unit, kernel, Grid::rows(rows, width, pack), &args)
    }

    /// Mean and 1 / deviation of every row, `[rows, 2]` in f32.
    fn moments(&self, x: &Tensor) -> Result<Tensor> {
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
fn columns(g: &Tensor, x: Option<&Tensor>, moments: Option<&Tensor>, rows: usize) -> Result<Tensor> {
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
pub fn column_sums(g: &Tensor) -> Result<Tensor> {
    let g = plain(g, g.dtype())?;
    Ok(columns(&g, None, None, g.dim(0)?)?.squeeze(0)?.to_dtype(g.dtype())?)
}

/// Softmax over the last dimension, without a graph.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let x = aligned(x, x.dtype())?;
    let out = like(&x)?;
    softmax_kernel("softmax", &x, &[&x, &out])?;
    Ok(out)
}

/// The gradient of softmax's input, from that of its output `y`.
pub fn softmax_back(grad: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (grad, y) = (aligned(grad, y.dtype())?, aligned(y, y.dtype())?);
    let out = like(&y)?;
    softmax_kernel("softmax_back", &y, &[&grad, &y, &out])?;
    Ok(out)
}

fn softmax_kernel(kernel: &'static str, x: &Tensor, tensors: &[&Tensor]) -> Result<()> {
    let width = x.dim(D::Minus1)?;
    let (rows, pack) = (x.elem_count() / width.max(1), pack(width, &[x]));
    let tensors = tensors.iter().map(|x| Arg::Tensor(x));
    let args: Vec<Arg> = tensors.chain([Arg::Long(rows), Arg::Int(width)]).collect();
    launch(x.device(), &Unit::new(File::Rows, x, pack), kernel, Grid::rows(rows, width, pack), &args)
}

/// Group normalisation of `x [batch, channels, ..]`, with SiLU behind it if `gated`.
pub fn norm_groups(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64, gated: bool) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let pixels = x.elem_count() / (batch * channels).max(1);
    let input = aligned(x, x.dtype())?;
    let own = if weight.dtype() == DType::F64 { DType::F32 } else { weight.dtype() };
    let (w, b) = (plain(weight, own)?, plain(bias, own)?);
    let unit = Unit::new(File::Groups, &input, pack(pixels, &[&input])).weights(Some(&w));
    let numbers = move || {
        [
            Arg::Int(groups),
            Arg::Int(channels / groups),
            Arg::Long(pixels),
            Arg::Int(usize::from(gated)),
            Arg::Float(eps),
        ]
    };
    let threads = (channels / groups * pixels / unit.pack).next_multiple_of(32).clamp(32, 1024);
    let grid = move || Grid { blocks: [batch * groups, 1, 1], threads: [threads, 1], shared: 0 };
    let out = like(&input)?;
    let tensors = [Arg::Tensor(&input), Arg::Tensor(&w), Arg::Tensor(&b), Arg::Tensor(&out)];
    launch(x.device(), &unit, "group", grid(), &tensors.into_iter().chain(numbers()).collect::<Vec<_>>())?;
    let types = [weight.dtype(), bias.dtype()];
    custom_vjp(&[x, weight, bias], out, move |grad, wanted| {
        let grad = aligned(grad, input.dtype())?;
        let (gx, trained) = (like(&input)?, wanted[1] || wanted[2]);
        let sums = if trained { Some(fresh((2, batch, channels), DType::F32, grad.device())?) } else { None };
        let tensors = [
            Arg::Tensor(&grad),
            Arg::Tensor(&input),
            Arg::Tensor(&w),
            Arg::Tensor(&b),
            Arg::Tensor(&gx),
            Arg::Maybe(sums.as_ref()),
        ];
        let args: Vec<Arg> = tensors.into_iter().chain(numbers()).collect();
        launch(grad.device(), &unit, "group_back", grid(), &args)?;
        let of = |i: usize| -> Result<Option<Tensor>> {
            let Some(sums) = sums.as_ref().filter(|_| wanted[i + 1]) else { return Ok(None) };
            Ok(Some(sums.get(i)?.sum(0)?.to_dtype(types[i])?))
        };
        let rest = [of(0)?, of(1)?];
        Ok([Some(gx).filter(|_| wanted[0])].into_iter().chain(rest).collect())
    })
}

/// `x + gate y` for `x, y [batch, tokens, d]` and `gate [batch, d]`.
pub fn gated_add(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (tokens, width) = (x.dim(1)?, x.dim(2)?);
    let (base, by, change) = (aligned(x, x.dtype())?, aligned(gate, x.dtype())?, aligned(y, x.dtype())?);
    let out = like(&base)?;
    gated(Some(&base), &by, &change, &out, tokens, width)?;
    let change = gate.track_op().then_some(change);
    let types = [gate.dtype(), y.dtype()];
    custom_vjp(&[x, gate, y], out, move |grad, wanted| {
        let grad = aligned(grad, by.dtype())?;
        let ggate = match &change {
            Some(y) if wanted[1] => Some(columns(&grad, Some(y), None, tokens)?.to_dtype(types[0])?),
            _ => None,
        };
        let gy = if wanted[2] { Some(like(&grad)?) } else { None };
        if let Some(gy) = &gy {
            gated(None, &by, &grad, gy, tokens, width)?;
        }
        Ok(vec![wanted[0].then(|| grad.clone()), ggate, gy.map(|gy| gy.to_dtype(types[1])).transpose()?])
    })
}

fn gated(x: Option<&Tensor>, gate: &Tensor, y: &Tensor, out: &Tensor, tokens: usize, width: usize) -> Result<()> {
    let pack = pack(width, &[y]);
    let n = y.elem_count() / pack;
    let tensors = [Arg::Maybe(x), Arg::Tensor(gate), Arg::Tensor(y), Arg::Tensor(out)];
    let args: Vec<Arg> = tensors.into_iter().chain([Arg::Long(n), Arg::Int(tokens), Arg::Int(width)]).collect();
    launch(y.device(), &Unit::new(File::Points, y, pack), "gated", Grid::each(n), &args)
}
