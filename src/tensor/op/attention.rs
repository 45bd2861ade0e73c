//! Softmax and scaled dot-product attention; scores are made in blocks of queries and never stored whole.

use super::cast::wide;
use crate::bail;
use crate::error::Result;
use crate::tensor::cuda;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Data, Matrix, Real, Shared, data, dot, fresh, grain, on_cpu, product, sum};
use candle_core::{D, Tensor};
use num_traits::Float;
use rayon::prelude::*;

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let out = match cuda::takes(x) {
        true => cuda::norm::softmax(x),
        false => on_cpu!(x, softmax_cpu(&x.detach().contiguous()?), softmax_composed(&x.detach())),
    }?;
    let y = out.copy()?;
    custom_vjp(&[x], out, move |grad, _| {
        if cuda::takes(&y) {
            return Ok(vec![Some(cuda::norm::softmax_back(grad, &y)?)]);
        }
        let inner = (grad * &y)?.sum_keepdim(D::Minus1)?;
        Ok(vec![Some((grad.broadcast_sub(&inner)? * &y)?)])
    })
}

fn softmax_composed(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?)
}

fn softmax_cpu<T: Real>(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?.max(1);
    let mut out = data::<T>(x)?.to_vec();
    out.par_chunks_mut(width).with_min_len(grain(width)).for_each(|row| {
        normalise(row);
    });
    Ok(Tensor::from_vec(out, x.dims(), x.device())?)
}

/// Softmax of a row in place; returns the log of the sum of exponentials.
fn normalise<T: Real>(row: &mut [T]) -> T {
    let top = row.iter().fold(T::neg_infinity(), |m, v| Float::max(m, *v));
    row.iter_mut().for_each(|v| *v = (*v - top).exponential());
    let sum = sum(row, |v| v);
    row.iter_mut().for_each(|v| *v /= sum);
    top + sum.ln()
}

/// Sizes of one attention: `q [batch, s, heads, d]`, `k, v [batch, t, kv, d]`.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    s: usize,
    t: usize,
    heads: usize,
    kv: usize,
    d: usize,
    scale: f64,
}

/// `softmax(scale q k^T + mask) v` per head.
///
/// `q [batch, s, heads, d]`, `k` and `v [batch, t, kv, d]` where `kv` divides `heads`; `mask` is added to the scores and has
/// the shape `[batch or 1, heads or 1, s, t]`. Returns `[batch, s, heads, d]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: Option<&Tensor>) -> Result<Tensor> {
    let (batch, s, heads, d) = q.dims4()?;
    let (_, t, kv, _) = k.dims4()?;
    if k.dims() != [batch, t, kv, d] || v.dims() != k.dims() || heads % kv != 0 {
        bail!(
            Shape,
            "attention: expected q [b, s, heads, d] and k, v [b, t, kv, d], got {:?}, {:?}, {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    if let Some(m) = mask {
        let (mb, mh, ms, mt) = m.dims4()?;
        if (mb != 1 && mb != batch) || (mh != 1 && mh != heads) || ms != s || mt != t {
            bail!(Shape, "attention: expected a mask [{batch} or 1, {heads} or 1, {s}, {t}], got {:?}", m.dims());
        }
    }
    let sizes = Sizes { batch, s, t, heads, kv, d, scale };
    if cuda::takes(q) {
        return cuda::attention::attention(q, k, v, mask, cuda::attention::Sizes { batch, s, t, heads, kv, d, scale });
    }
    wide([q, k, v], |[q, k, v]| {
        let mask = mask.map(|m| m.to_dtype(q.dtype())).transpose()?;
        let mask = mask.as_ref();
        on_cpu!(q, attention_cpu(q, k, v, mask, sizes), attention_composed(q, k, v, mask, sizes))
    })
}

fn attention_composed(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, z: Sizes) -> Result<Tensor> {
    let (s, t) = (z.s, z.t);
    let heads = |x: &Tensor, n: usize| -> Result<Tensor> {
        let x = x.transpose(1, 2)?; // [b, kv, n, d]
        let x = x.unsqueeze(2)?.expand((z.batch, x.dim(1)?, z.heads / x.dim(1)?, n, z.d))?;
        Ok(x.contiguous()?.reshape((z.batch, z.heads, n, z.d))?)
    };
    let scores = (heads(q, s)?.matmul(&heads(k, t)?.t()?.contiguous()?)? * z.scale)?;
    let scores = match mask {
        Some(m) => scores.broadcast_add(m)?,
        None => scores,
    };
    Ok(softmax(&scores)?.matmul(&heads(v, t)?)?.transpose(1, 2)?.contiguous()?)
}

/// Queries per block of scores.
const BLOCK: usize = 128;

/// The data of one attention on the CPU; `lse` is the log-sum-exp of every score row, `[batch, heads, s]`.
struct Problem<'a, T> {
    q: Data<'a, T>,
    k: Data<'a, T>,
    v: Data<'a, T>,
    mask: Option<(Data<'a, T>, usize, usize)>,
    z: Sizes,
}

impl<T: Real> Problem<'_, T> {
    /// `scale q k^T + mask` of queries `i..i + n` of one head into `scores [n, t]`.
    fn scores(&self, b: usize, h: usize, i: usize, n: usize, scores: &mut [T]) {
        let z = self.z;
        let (q, k) = (&self.q[self.query(b, h, i)..], &self.k[self.key(b, h)..]);
        // SAFETY: the slices start at the head's first number and the strides stay inside the tensors.
        unsafe {
            let (a, c) = (Matrix::rows(q, z.heads * z.d), Matrix::columns(k, z.kv * z.d));
            product((n, z.d, z.t), a, c, (scores.as_mut_ptr(), z.t), false, z.scale);
        }
        if let Some((mask, per_batch, per_head)) = &self.mask {
            let at = b * per_batch + h * per_head + i * z.t;
            scores.iter_mut().zip(&mask[at..]).for_each(|(s, m)| *s += *m);
        }
    }

    fn query(&self, b: usize, h: usize, i: usize) -> usize {
        ((b * self.z.s + i) * self.z.heads + h) * self.z.d
    }

    fn key(&self, b: usize, h: usize) -> usize {
        (b * self.z.t * self.z.kv + h * self.z.kv / self.z.heads) * self.z.d
    }
}

fn attention_cpu<T: Real>(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, z: Sizes) -> Result<Tensor> {
    let parts: Vec<Tensor> = [q, k, v].iter().map(|x| x.detach().contiguous()).collect::<candle_core::Result<_>>()?;
    let mask = mask.map(|m| m.detach().to_dtype(T::DTYPE)?.contiguous()).transpose()?;
    let (out, lse) = forward(&problem::<T>(&parts, mask.as_ref(), z)?);
    custom_vjp(&[q, k, v], Tensor::from_vec(out, q.dims(), q.device())?, move |grad, _| {
        let grad = grad.contiguous()?;
        let gradients = backward(&problem::<T>(&parts, mask.as_ref(), z)?, &data::<T>(&grad)?, &lse);
        gradients.into_iter().zip(&parts).map(|(g, x)| Ok(Some(Tensor::from_vec(g, x.dims(), x.device())?))).collect()
    })
}

fn problem<'a, T: Real>(parts: &'a [Tensor], mask: Option<&'a Tensor>, z: Sizes) -> Result<Problem<'a, T>> {
    let mask = match mask {
        Some(m) => {
            let per_head = if m.dim(1)? == 1 { 0 } else { z.s * z.t };
            let per_batch = if m.dim(0)? == 1 { 0 } else { m.dim(1)? * z.s * z.t };
            Some((data::<T>(m)?, per_batch, per_head))
        }
        None => None,
    };
    Ok(Problem { q: data(&parts[0])?, k: data(&parts[1])?, v: data(&parts[2])?, mask, z })
}

fn forward<T: Real>(p: &Problem<T>) -> (Vec<T>, Vec<T>) {
    let z = p.z;
    let mut lse = vec![T::zero(); z.batch * z.heads * z.s];
    let scratch = || vec![T::zero(); BLOCK.min(z.s) * z.t];
    let job = |shared: Shared<T>, scores: &mut Vec<T>, (job, lse): (usize, &mut [T])| {
        let (b, h) = (job / z.heads, job % z.heads);
        for i in (0..z.s).step_by(BLOCK) {
            let n = BLOCK.min(z.s - i);
            let scores = &mut scores[..n * z.t];
            p.scores(b, h, i, n, scores);
            scores.chunks_mut(z.t).zip(&mut lse[i..]).for_each(|(row, l)| *l = normalise(row));
            // SAFETY: every job writes the rows of its own head.
            unsafe {
                let c = (shared.at(p.query(b, h, i)), z.heads * z.d);
                let v = Matrix::rows(&p.v[p.key(b, h)..], z.kv * z.d);
                product((n, z.t, z.d), Matrix::rows(scores, z.t), v, c, false, 1.0);
            }
        }
    };
    let out = fresh(z.batch * z.s * z.heads * z.d, |out| {
        let shared = Shared(out.as_mut_ptr());
        lse.par_chunks_mut(z.s).enumerate().for_each_init(scratch, |scores, line| job(shared, scores, line));
    });
    (out, lse)
}

/// Gradients of q, k and v: with `P = softmax`, `dP = dO V^T`, `dS = P (dP - rowsum(P dP))`.
fn backward<T: Real>(p: &Problem<T>, grad: &[T], lse: &[T]) -> [Vec<T>; 3] {
    let z = p.z;
    let mut gradients = [vec![T::zero(); p.q.len()], vec![T::zero(); p.k.len()], vec![T::zero(); p.v.len()]];
    let [gq, gk, gv] = gradients.each_mut().map(|g| Shared(g.as_mut_ptr()));
    let block = || vec![T::zero(); BLOCK.min(z.s) * z.t];
    (0..z.batch * z.kv).into_par_iter().for_each_init(
        || (block(), block()),
        |(probabilities, ds), job| {
            let (b, group) = (job / z.kv, z.heads / z.kv);
            for h in job % z.kv * group..(job % z.kv + 1) * group {
                let (wide, narrow) = (z.heads * z.d, z.kv * z.d);
                let (k, v) = (&p.k[p.key(b, h)..], &p.v[p.key(b, h)..]);
                for i in (0..z.s).step_by(BLOCK) {
                    let n = BLOCK.min(z.s - i);
                    let (pr, ds) = (&mut probabilities[..n * z.t], &mut ds[..n * z.t]);
                    p.scores(b, h, i, n, pr);
                    let (at, lse) = (p.query(b, h, i), &lse[(b * z.heads + h) * z.s + i..]);
                    pr.chunks_mut(z.t)
                        .zip(lse)
                        .for_each(|(row, l)| row.iter_mut().for_each(|x| *x = (*x - *l).exponential()));
                    // SAFETY: every job writes the rows of its own key head and of the query heads that share it.
                    unsafe {
                        let g = Matrix::rows(&grad[at..], wide);
                        product((n, z.d, z.t), g, Matrix::columns(v, narrow), (ds.as_mut_ptr(), z.t), false, 1.0);
                        product((z.t, n, z.d), Matrix::columns(pr, z.t), g, (gv.at(p.key(b, h)), narrow), true, 1.0);
                        for (ds, pr) in ds.chunks_mut(z.t).zip(pr.chunks(z.t)) {
                            let inner = dot(ds, pr, |p| p);
                            ds.iter_mut().zip(pr).for_each(|(d, p)| *d = *p * (*d - inner));
                        }
                        let (rows, columns) = (Matrix::rows(ds, z.t), Matrix::columns(ds, z.t));
                        product((n, z.t, z.d), rows, Matrix::rows(k, narrow), (gq.at(at), wide), false, z.scale);
                        let q = Matrix::rows(&p.q[at..], wide);
                        product((z.t, n, z.d), columns, q, (gk.at(p.key(b, h)), narrow), true, z.scale);
                    }
                }
            }
        },
    );
    gradients
}
