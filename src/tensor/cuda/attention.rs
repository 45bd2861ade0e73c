//! Attention that keeps its output and a number per score row: on tensor cores for half-precision heads of at most 128 numbers, else in
//! blocks of queries by cuBLAS.

use super::norm::{softmax, softmax_back};
use super::{Arg, File, Grid, Unit, aligned, fresh, launch, like, pack};
use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use candle_core::{DType, Tensor};
use std::sync::{Arc, OnceLock};

/// `q [batch, s, heads, d]`, `k, v [batch, t, kv, d]`.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub s: usize,
    pub t: usize,
    pub heads: usize,
    pub kv: usize,
    pub d: usize,
    pub scale: f64,
}

/// `softmax(scale q k^T + mask) v` per head, `mask [batch or 1, heads or 1, s, t]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, z: Sizes) -> Result<Tensor> {
    let half = matches!(q.dtype(), DType::BF16 | DType::F16);
    if half && z.d.is_multiple_of(8) && z.d <= 128 {
        return on_tensor_cores(q, k, v, mask, z);
    }
    in_blocks(q, k, v, mask, z)
}

/// Detached inputs of one attention.
struct Problem {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Option<Tensor>,
    z: Sizes,
}

impl Problem {
    /// In one float type.
    fn new([q, k, v]: [&Tensor; 3], mask: Option<&Tensor>, dtype: DType, z: Sizes) -> Result<Self> {
        let mask = mask.map(|m| aligned(m, DType::F32)).transpose()?;
        Ok(Self { q: aligned(q, dtype)?, k: aligned(k, dtype)?, v: aligned(v, dtype)?, mask, z })
    }

    fn unit(&self) -> Unit {
        let head = [64, 80, 128].into_iter().find(|h| *h >= self.z.d).unwrap_or(128);
        Unit { head, ..Unit::new(File::Attention, &self.q, 1) }
    }

    /// A kernel: q, k, v and mask, then `more` tensors, then the sizes.
    fn launch(&self, kernel: &'static str, blocks: [usize; 3], shared: usize, more: &[&Tensor]) -> Result<()> {
        let z = self.z;
        let (per_batch, per_head) = match &self.mask {
            Some(m) => {
                let per_head = if m.dim(1)? == 1 { 0 } else { z.s * z.t };
                (if m.dim(0)? == 1 { 0 } else { m.dim(1)? * z.s * z.t }, per_head)
            }
            None => (0, 0),
        };
        let first = [Arg::Tensor(&self.q), Arg::Tensor(&self.k), Arg::Tensor(&self.v), Arg::Maybe(self.mask.as_ref())];
        let sizes = [z.s, z.t, z.heads, z.kv, z.d].map(Arg::Int);
        let last = [Arg::Float(z.scale), Arg::Long(per_batch), Arg::Long(per_head)];
        let more = more.iter().map(|x| Arg::Tensor(x));
        let args: Vec<Arg> = first.into_iter().chain(more).chain(sizes).chain(last).collect();
        launch(self.q.device(), &self.unit(), kernel, Grid { blocks, threads: [128, 1], shared }, &args)
    }
}

fn on_tensor_cores(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, z: Sizes) -> Result<Tensor> {
    let p = Problem::new([q, k, v], mask, q.dtype(), z)?;
    let (out, lse) = (like(&p.q)?, fresh((z.batch, z.heads, z.s), DType::F32, q.device())?);
    p.launch("forward", [z.s.div_ceil(64), z.heads, z.batch], 0, &[&out, &lse])?;
    let types = [q, k, v].map(Tensor::dtype);
    // The node's own output, without its graph: there is no cycle.
    let kept = Arc::new(OnceLock::<Tensor>::new());
    let own = kept.clone();
    let y = custom_vjp(&[q, k, v], out, move |grad, wanted| {
        let Some(out) = own.get() else { crate::bail!(Internal, "attention: its output must be kept, got none") };
        let gradients = backward(&p, out, &lse, &aligned(grad, p.q.dtype())?, wanted)?;
        let typed = gradients.into_iter().zip(types).map(|(g, t)| g.map(|g| Ok(g.to_dtype(t)?)).transpose());
        typed.collect()
    })?;
    if y.track_op() {
        kept.get_or_init(|| y.detach());
    }
    Ok(y)
}

fn backward(p: &Problem, out: &Tensor, lse: &Tensor, grad: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
    let z = p.z;
    let delta = like(lse)?;
    let (rows, pack) = (z.batch * z.s * z.heads, pack(z.d, &[grad, out]));
    let args = [
        Arg::Tensor(grad),
        Arg::Tensor(out),
        Arg::Tensor(&delta),
        Arg::Long(rows),
        Arg::Int(z.d),
        Arg::Int(z.s),
        Arg::Int(z.heads),
    ];
    launch(grad.device(), &Unit::new(File::Rows, grad, pack), "inner", Grid::rows(rows, z.d, pack), &args)?;
    let shared = (2 * 64 + 2 * 32) * (p.unit().head + 8) * 2;
    let mut gradients = vec![None, None, None];
    if wanted[0] {
        let gq = like(&p.q)?;
        p.launch("backward_queries", [z.s.div_ceil(64), z.heads, z.batch], shared, &[grad, lse, &delta, &gq])?;
        gradients[0] = Some(gq);
    }
    if wanted[1] || wanted[2] {
        let (gk, gv) = (like(&p.k)?, like(&p.v)?);
        p.launch("backward_keys", [z.t.div_ceil(64), z.kv, z.batch], shared, &[grad, lse, &delta, &gk, &gv])?;
        gradients[1] = Some(gk).filter(|_| wanted[1]);
        gradients[2] = Some(gv).filter(|_| wanted[2]);
    }
    Ok(gradients)
}

/// Numbers of scores at a time.
pub const SCORES: usize = if cfg!(test) { 1 << 11 } else { 1 << 26 };

impl Problem {
    /// Queries at a time.
    fn block(&self) -> usize {
        (SCORES / (self.z.batch * self.z.heads * self.z.t).max(1)).clamp(1, self.z.s.max(1))
    }

    /// `[batch, n, heads of x, d]` as `[batch heads, n, d]`; key heads are repeated for the query heads that share them.
    fn by_head(&self, x: &Tensor) -> Result<Tensor> {
        let (b, n, own, d) = x.dims4()?;
        let x = x.transpose(1, 2)?.unsqueeze(2)?.expand((b, own, self.z.heads / own, n, d))?;
        Ok(x.contiguous()?.reshape((b * self.z.heads, n, d))?)
    }

    /// The way back, summed over query heads that share one of `own` heads.
    fn by_token(&self, x: &Tensor, own: usize) -> Result<Tensor> {
        let (_, n, d) = x.dims3()?;
        let x = x.reshape((self.z.batch, own, self.z.heads / own, n, d))?;
        let x = if own == self.z.heads { x.squeeze(2)? } else { x.sum(2)? };
        Ok(x.transpose(1, 2)?.contiguous()?)
    }

    /// Probabilities of queries `i..i + n`, `[batch heads, n, t]`.
    fn probabilities(&self, q: &Tensor, k: &Tensor, i: usize, n: usize) -> Result<Tensor> {
        let (z, rows) = (self.z, q.narrow(1, i, n)?.contiguous()?);
        let mut scores = (rows.matmul(&k.t()?)? * z.scale)?;
        if let Some(m) = &self.mask {
            scores = scores.reshape((z.batch, z.heads, n, z.t))?.broadcast_add(&m.narrow(2, i, n)?)?;
        }
        softmax(&scores.reshape((z.batch * z.heads, n, z.t))?)
    }
}

/// Computed in f32.
fn in_blocks(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, z: Sizes) -> Result<Tensor> {
    let p = Problem::new([q, k, v], mask, DType::F32, z)?;
    let starts: Vec<usize> = (0..z.s).step_by(p.block()).collect();
    let out = {
        let (q, k, v) = (p.by_head(&p.q)?, p.by_head(&p.k)?, p.by_head(&p.v)?);
        let block = |i: &usize| {
            let n = p.block().min(z.s - i);
            Ok(p.probabilities(&q, &k, *i, n)?.matmul(&v)?)
        };
        Tensor::cat(&starts.iter().map(block).collect::<Result<Vec<_>>>()?, 1)?
    };
    let types = [q, k, v].map(Tensor::dtype);
    let out = p.by_token(&out, z.heads)?.to_dtype(types[0])?;
    custom_vjp(&[q, k, v], out, move |grad, _| {
        let g = p.by_head(&grad.to_dtype(DType::F32)?)?;
        let (q, k, v) = (p.by_head(&p.q)?, p.by_head(&p.k)?, p.by_head(&p.v)?);
        let (mut gq, mut gk, mut gv) = (Vec::new(), k.zeros_like()?, k.zeros_like()?);
        for &i in &starts {
            let n = p.block().min(z.s - i);
            let (probabilities, g) = (p.probabilities(&q, &k, i, n)?, g.narrow(1, i, n)?.contiguous()?);
            let ds = (softmax_back(&g.matmul(&v.t()?)?, &probabilities)? * z.scale)?;
            gv = (gv + probabilities.t()?.matmul(&g)?)?;
            gk = (gk + ds.t()?.matmul(&q.narrow(1, i, n)?.contiguous()?)?)?;
            gq.push(ds.matmul(&k)?);
        }
        let all = [(Tensor::cat(&gq, 1)?, z.heads), (gk, z.kv), (gv, z.kv)];
        all.iter().zip(types).map(|((g, own), t)| Ok(Some(p.by_token(g, *own)?.to_dtype(t)?))).collect()
    })
}
