//! Attention that keeps its output and a number per score row: on tensor cores for half-precision heads of at most 128 numbers, else in
//! blocks of queries by cuBLAS.

use super::norm::{softmax, softmax_back};
use super::{Arg, File, Grid, Unit, aligned, fresh, launch, like, pack, piece};
use crate::Array;
use crate::op::AttentionShape;
use crate::op::call::{Inputs, Kept, given};
use amscript_base::error::Result;
use candle_core::DType;

/// Whether heads like these are attended to on tensor cores.
pub fn on_tensor_cores(q: &Array) -> bool {
    let d = q.dims()[3];
    crate::raw::is_half(q.dtype()) && d.is_multiple_of(8) && d <= 128
}

/// `softmax(scale q k^T + mask) v` per head, and on tensor cores the log-sum-exp of every score row.
pub fn attention(inputs: Inputs<4>, z: AttentionShape) -> Result<(Array, Option<Array>)> {
    let q = given(inputs[0])?;
    if !on_tensor_cores(q) {
        return Ok((Problem::new(inputs, DType::F32, z)?.in_blocks()?, None));
    }
    let p = Problem::new(inputs, q.dtype(), z)?;
    let (out, lse) = (like(&p.q)?, fresh((z.batch, z.heads, z.s), DType::F32, q.device())?);
    p.launch("forward", [z.s.div_ceil(64), z.heads, z.batch], 0, &[&out, &lse])?;
    Ok((out, Some(lse)))
}

/// The gradients of q, k and v.
pub fn attention_back(
    kept: Kept<4, Option<Array>>,
    gradient: &Array,
    z: AttentionShape,
    wanted: [bool; 4],
) -> Result<[Option<Array>; 4]> {
    match kept.more {
        Some(lse) => {
            let p = Problem::new(kept.inputs, given(kept.inputs[0])?.dtype(), z)?;
            let gradient = aligned(gradient, p.q.dtype())?;
            p.backward(&aligned(given(kept.output)?, p.q.dtype())?, lse, &gradient, wanted)
        }
        None => Problem::new(kept.inputs, DType::F32, z)?.backward_in_blocks(gradient),
    }
}

/// Bytes held for a time: in blocks, those of scores, and numbers by head in f32.
pub fn scratch(q: &Array, z: AttentionShape) -> usize {
    if on_tensor_cores(q) {
        return 0;
    }
    let scores = 3 * z.batch * z.heads * block(z) * z.t;
    let by_head = z.batch * z.heads * z.d * (4 * z.s + 5 * z.t);
    (scores + by_head) * size_of::<f32>()
}

/// Inputs of one attention, in one float type.
struct Problem {
    q: Array,
    k: Array,
    v: Array,
    mask: Option<Array>,
    z: AttentionShape,
}

impl Problem {
    fn new([q, k, v, mask]: Inputs<4>, dtype: DType, z: AttentionShape) -> Result<Self> {
        let part = |x: Option<&Array>| aligned(given(x)?, dtype);
        let mask = mask.map(|m| aligned(m, DType::F32)).transpose()?;
        Ok(Self { q: part(q)?, k: part(k)?, v: part(v)?, mask, z })
    }

    fn unit(&self) -> Unit {
        let head = [64, 80, 128].into_iter().find(|h| *h >= self.z.d).unwrap_or(128);
        Unit { head, ..Unit::new(File::Attention, &self.q, 1) }
    }

    /// A kernel: q, k, v and mask, then `more` tensors, then the sizes.
    fn launch(&self, kernel: &'static str, blocks: [usize; 3], shared: usize, more: &[&Array]) -> Result<()> {
        let z = self.z;
        let (per_batch, per_head) = self.mask.as_ref().map_or(Ok((0, 0)), |m| z.mask_steps(m))?;
        let first = [Arg::Tensor(&self.q), Arg::Tensor(&self.k), Arg::Tensor(&self.v), Arg::Maybe(self.mask.as_ref())];
        let sizes = [z.s, z.t, z.heads, z.kv, z.d].map(Arg::Int);
        let last = [Arg::Float(z.scale), Arg::Long(per_batch), Arg::Long(per_head)];
        let more = more.iter().map(|x| Arg::Tensor(x));
        let args: Vec<Arg> = first.into_iter().chain(more).chain(sizes).chain(last).collect();
        launch(self.q.device(), &self.unit(), kernel, Grid { blocks, threads: [128, 1], shared }, &args)
    }

    fn backward(&self, out: &Array, lse: &Array, gradient: &Array, wanted: [bool; 4]) -> Result<[Option<Array>; 4]> {
        let (z, delta) = (self.z, like(lse)?);
        let (rows, pack) = (z.batch * z.s * z.heads, pack(z.d, &[gradient, out]));
        let args = [
            Arg::Tensor(gradient),
            Arg::Tensor(out),
            Arg::Tensor(&delta),
            Arg::Long(rows),
            Arg::Int(z.d),
            Arg::Int(z.s),
            Arg::Int(z.heads),
        ];
        let unit = Unit::new(File::Rows, gradient, pack);
        launch(gradient.device(), &unit, "inner", Grid::rows(rows, z.d, pack), &args)?;
        let shared = 4 * 64 * (self.unit().head + 8) * 2;
        let mut gradients = [const { None }; 4];
        if wanted[0] {
            let (gq, blocks) = (like(&self.q)?, [z.s.div_ceil(64), z.heads, z.batch]);
            self.launch("backward_queries", blocks, shared, &[gradient, lse, &delta, &gq])?;
            gradients[0] = Some(gq);
        }
        if wanted[1] || wanted[2] {
            let (gk, gv, blocks) = (like(&self.k)?, like(&self.v)?, [z.t.div_ceil(64), z.kv, z.batch]);
            self.launch("backward_keys", blocks, shared, &[gradient, lse, &delta, &gk, &gv])?;
            gradients[1] = Some(gk).filter(|_| wanted[1]);
            gradients[2] = Some(gv).filter(|_| wanted[2]);
        }
        Ok(gradients)
    }
}

/// Queries at a time.
fn block(z: AttentionShape) -> usize {
    (piece(1 << 26) / (z.batch * z.heads * z.t).max(1)).clamp(1, z.s.max(1))
}

/// In blocks of queries.
impl Problem {
    /// First queries of blocks, and how many there are in each.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> {
        let (s, block) = (self.z.s, block(self.z));
        (0..s).step_by(block).map(move |i| (i, block.min(s - i)))
    }

    /// `[batch, n, heads of x, d]` as `[batch heads, n, d]`; key heads are repeated for the query heads that share them.
    fn by_head(&self, x: &Array) -> Result<Array> {
        let (b, n, own, d) = x.dims4()?;
        let x = x.transpose(1, 2)?.unsqueeze(2)?.expand((b, own, self.z.heads / own, n, d))?;
        Ok(x.contiguous()?.reshape((b * self.z.heads, n, d))?)
    }

    /// The way back, summed over query heads that share one of `own` heads.
    fn by_token(&self, x: &Array, own: usize) -> Result<Array> {
        let (_, n, d) = x.dims3()?;
        let x = x.reshape((self.z.batch, own, self.z.heads / own, n, d))?;
        let x = if own == self.z.heads { x.squeeze(2)? } else { x.sum(2)? };
        Ok(x.transpose(1, 2)?.contiguous()?)
    }

    /// Probabilities of queries `i..i + n`, `[batch heads, n, t]`.
    fn probabilities(&self, q: &Array, k: &Array, i: usize, n: usize) -> Result<Array> {
        let (z, rows) = (self.z, q.narrow(1, i, n)?.contiguous()?);
        let mut scores = (rows.matmul(&k.t()?)? * z.scale)?;
        if let Some(m) = &self.mask {
            scores = scores.reshape((z.batch, z.heads, n, z.t))?.broadcast_add(&m.narrow(2, i, n)?)?;
        }
        softmax(&scores.reshape((z.batch * z.heads, n, z.t))?)
    }

    fn in_blocks(&self) -> Result<Array> {
        let (q, k, v) = (self.by_head(&self.q)?, self.by_head(&self.k)?, self.by_head(&self.v)?);
        let block = |(i, n)| Ok(self.probabilities(&q, &k, i, n)?.matmul(&v)?);
        let out = Array::cat(&self.blocks().map(block).collect::<Result<Vec<_>>>()?, 1)?;
        self.by_token(&out, self.z.heads)
    }

    fn backward_in_blocks(&self, gradient: &Array) -> Result<[Option<Array>; 4]> {
        let (z, g) = (self.z, self.by_head(&gradient.to_dtype(DType::F32)?)?);
        let (q, k, v) = (self.by_head(&self.q)?, self.by_head(&self.k)?, self.by_head(&self.v)?);
        let (mut gq, mut gk, mut gv) = (Vec::new(), k.zeros_like()?, k.zeros_like()?);
        for (i, n) in self.blocks() {
            let (probabilities, g) = (self.probabilities(&q, &k, i, n)?, g.narrow(1, i, n)?.contiguous()?);
            let ds = (softmax_back(&g.matmul(&v.t()?)?, &probabilities)? * z.scale)?;
            gv = (gv + probabilities.t()?.matmul(&g)?)?;
            gk = (gk + ds.t()?.matmul(&q.narrow(1, i, n)?.contiguous()?)?)?;
            gq.push(ds.matmul(&k)?);
        }
        let gq = self.by_token(&Array::cat(&gq, 1)?, z.heads)?;
        Ok([Some(gq), Some(self.by_token(&gk, z.kv)?), Some(self.by_token(&gv, z.kv)?), None])
    }
}
