//! Softmax and scaled dot-product attention; scores are made in blocks of queries and never stored whole.

use super::cast::wide;
use super::shape::{narrow, reshape};
use crate::bail;
use crate::error::{Error, Result};
use crate::tensor::cuda;
use crate::tensor::grad::custom_vjp;
use crate::tensor::kernel::{Data, Matrix, Real, Shared, data, dot, fresh, grain, largest, on_cpu, product, sum};
use candle_core::{D, Tensor};
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
    let top = largest(row);
    row.iter_mut().for_each(|v| *v = (*v - top).exponential());
    let sum = sum(row, |v| v);
    let share = T::one() / sum;
    row.iter_mut().for_each(|v| *v *= share);
    top + sum.ln()
}

/// Sizes of one attention: `q [batch, s, heads, d]`, `k, v [batch, t, kv, d]`, and from one token to the next in them.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    s: usize,
    t: usize,
    heads: usize,
    kv: usize,
    d: usize,
    scale: f64,
    query_row: usize,
    key_row: usize,
}

impl Sizes {
    fn check_mask(&self, mask: Option<&Tensor>) -> Result<()> {
        let Some(m) = mask else { return Ok(()) };
        let (b, h, s, t) = m.dims4()?;
        if (b != 1 && b != self.batch) || (h != 1 && h != self.heads) || s != self.s || t != self.t {
            let (batch, heads, s, t) = (self.batch, self.heads, self.s, self.t);
            bail!(Shape, "attention: expected a mask [{batch} or 1, {heads} or 1, {s}, {t}], got {:?}", m.dims());
        }
        Ok(())
    }

    fn query(&self, b: usize, h: usize, i: usize) -> usize {
        (b * self.s + i) * self.query_row + h * self.d
    }

    fn key(&self, b: usize, h: usize) -> usize {
        b * self.t * self.key_row + h * self.kv / self.heads * self.d
    }

    /// Where the result of a query lies.
    fn result(&self, b: usize, h: usize, i: usize) -> usize {
        ((b * self.s + i) * self.heads + h) * self.d
    }
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
    let sizes = Sizes { batch, s, t, heads, kv, d, scale, query_row: heads * d, key_row: kv * d };
    sizes.check_mask(mask)?;
    if cuda::takes(q) {
        return cuda::attention::attention(q, k, v, mask, cuda::attention::Sizes { batch, s, t, heads, kv, d, scale });
    }
    wide([q, k, v], |[q, k, v]| {
        let mask = mask.map(|m| m.to_dtype(q.dtype())).transpose()?;
        let mask = mask.as_ref();
        on_cpu!(q, attention_cpu(q, k, v, mask, sizes), attention_composed(q, k, v, mask, sizes))
    })
}

/// [`attention`] among the tokens of `qkv [batch, s, 3 width]`, which holds the queries, keys and values of each beside each other;
/// returns `[batch, s, width]`.
pub fn self_attention(qkv: &Tensor, heads: usize, scale: f64, mask: Option<&Tensor>) -> Result<Tensor> {
    let (batch, s, all) = qkv.dims3()?;
    if heads == 0 || !all.is_multiple_of(3 * heads) {
        bail!(Shape, "self_attention: expected 3 times {heads} heads beside each other, got shape {:?}", qkv.dims());
    }
    let d = all / (3 * heads);
    let sizes = Sizes { batch, s, t: s, heads, kv: heads, d, scale, query_row: all, key_row: all };
    sizes.check_mask(mask)?;
    let part = |qkv: &Tensor, i: usize| reshape(&narrow(qkv, 2, i * heads * d, heads * d)?, (batch, s, heads, d));
    if cuda::takes(qkv) {
        let out = attention(&part(qkv, 0)?, &part(qkv, 1)?, &part(qkv, 2)?, scale, mask)?;
        return reshape(&out, (batch, s, heads * d));
    }
    wide([qkv], |[qkv]| {
        let mask = mask.map(|m| m.to_dtype(qkv.dtype())).transpose()?;
        let mask = mask.as_ref();
        on_cpu!(qkv, self_attention_cpu(qkv, mask, sizes), {
            let [q, k, v] = [part(qkv, 0)?, part(qkv, 1)?, part(qkv, 2)?];
            reshape(&attention_composed(&q, &k, &v, mask, sizes)?, (batch, s, heads * d))
        })
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
    mask: Option<Masked<'a, T>>,
    z: Sizes,
}

impl<T: Real> Problem<'_, T> {
    /// `scale q k^T + mask` of queries `i..i + n` of one head into `scores [n, t]`.
    fn scores(&self, b: usize, h: usize, i: usize, n: usize, scores: &mut [T]) {
        let z = self.z;
        let (q, k) = (&self.q[z.query(b, h, i)..], &self.k[z.key(b, h)..]);
        // SAFETY: the slices start at the head's first number and the strides stay inside the tensors.
        unsafe {
            let (a, c) = (Matrix::rows(q, z.query_row), Matrix::columns(k, z.key_row));
            product((n, z.d, z.t), a, c, (scores.as_mut_ptr(), z.t), false, z.scale);
        }
        if let Some((mask, per_batch, per_head)) = &self.mask {
            let at = b * per_batch + h * per_head + i * z.t;
            scores.iter_mut().zip(&mask[at..]).for_each(|(s, m)| *s += *m);
        }
    }
}

fn attention_cpu<T: Real>(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, z: Sizes) -> Result<Tensor> {
    let parts: Vec<Tensor> = [q, k, v].iter().map(|x| x.detach().contiguous()).collect::<candle_core::Result<_>>()?;
    let mask = mask.map(|m| m.detach().to_dtype(T::DTYPE)?.contiguous()).transpose()?;
    let (out, lse) = forward(&problem::<T>(&parts, mask.as_ref(), z)?);
    custom_vjp(&[q, k, v], Tensor::from_vec(out, q.dims(), q.device())?, move |grad, _| {
        let grad = grad.contiguous()?;
        let zeros = |x: &Tensor| vec![T::zero(); x.elem_count()];
        let mut gradients = [zeros(&parts[0]), zeros(&parts[1]), zeros(&parts[2])];
        let places = gradients.each_mut().map(|g| Shared(g.as_mut_ptr()));
        backward(&problem::<T>(&parts, mask.as_ref(), z)?, &data::<T>(&grad)?, &lse, places);
        gradients.into_iter().zip(&parts).map(|(g, x)| Ok(Some(Tensor::from_vec(g, x.dims(), x.device())?))).collect()
    })
}

fn self_attention_cpu<T: Real>(qkv: &Tensor, mask: Option<&Tensor>, z: Sizes) -> Result<Tensor> {
    let (input, width) = (qkv.detach().contiguous()?, z.heads * z.d);
    let mask = mask.map(|m| m.detach().to_dtype(T::DTYPE)?.contiguous()).transpose()?;
    let (out, lse) = forward(&packed::<T>(&input, mask.as_ref(), z)?);
    let out = Tensor::from_vec(out, (z.batch, z.s, width), qkv.device())?;
    custom_vjp(&[qkv], out, move |grad, _| {
        let (grad, p) = (grad.contiguous()?, packed::<T>(&input, mask.as_ref(), z)?);
        let grad = data::<T>(&grad)?;
        let gradient = fresh(input.elem_count(), |out: &mut [T]| {
            // SAFETY: each of the three starts inside the first token.
            let places = [0, 1, 2].map(|i| Shared(unsafe { out.as_mut_ptr().add(i * width) }));
            backward(&p, &grad, &lse, places);
        });
        Ok(vec![Some(Tensor::from_vec(gradient, input.dims(), input.device())?)])
    })
}

fn problem<'a, T: Real>(parts: &'a [Tensor], mask: Option<&'a Tensor>, z: Sizes) -> Result<Problem<'a, T>> {
    Ok(Problem { q: data(&parts[0])?, k: data(&parts[1])?, v: data(&parts[2])?, mask: masked(mask, z)?, z })
}

fn packed<'a, T: Real>(qkv: &'a Tensor, mask: Option<&'a Tensor>, z: Sizes) -> Result<Problem<'a, T>> {
    let width = if qkv.elem_count() == 0 { 0 } else { z.heads * z.d };
    let part = |i: usize| Ok::<_, Error>(data::<T>(qkv)?.skip(i * width));
    Ok(Problem { q: part(0)?, k: part(1)?, v: part(2)?, mask: masked(mask, z)?, z })
}

/// A mask's numbers, and from one batch and one head to the next in them.
type Masked<'a, T> = (Data<'a, T>, usize, usize);

fn masked<T: Real>(mask: Option<&Tensor>, z: Sizes) -> Result<Option<Masked<'_, T>>> {
    let Some(m) = mask else { return Ok(None) };
    let per_head = if m.dim(1)? == 1 { 0 } else { z.s * z.t };
    let per_batch = if m.dim(0)? == 1 { 0 } else { m.dim(1)? * z.s * z.t };
    Ok(Some((data::<T>(m)?, per_batch, per_head)))
}

fn forward<T: Real>(p: &Problem<T>) -> (Vec<T>, Vec<T>) {
    let z = p.z;
    let mut lse = vec![T::zero(); z.batch * z.heads * z.s];
    let out = fresh(z.batch * z.s * z.heads * z.d, |out| {
        let shared = Shared(out.as_mut_ptr());
        let heads = lse.par_chunks_mut(z.s.max(1)).enumerate();
        let blocks =
            heads.flat_map(|(job, lse)| lse.par_chunks_mut(BLOCK).enumerate().map(move |(i, lse)| (job, i, lse)));
        blocks.for_each(|(job, i, lse)| {
            let (b, h, i, n) = (job / z.heads, job % z.heads, i * BLOCK, lse.len());
            let scores = fresh(n * z.t, |scores: &mut [T]| {
                p.scores(b, h, i, n, scores);
                scores.chunks_mut(z.t).zip(lse).for_each(|(row, l)| *l = normalise(row));
            });
            // SAFETY: every job writes its own rows of its own head.
            unsafe {
                let c = (shared.at(z.result(b, h, i)), z.heads * z.d);
                let v = Matrix::rows(&p.v[z.key(b, h)..], z.key_row);
                product((n, z.t, z.d), Matrix::rows(&scores, z.t), v, c, false, 1.0);
            }
        });
    });
    (out, lse)
}

/// Gradients of q, k and v, written where these begin and laid out like them: with `P = softmax`, `dP = dO V^T`,
/// `dS = P (dP - rowsum(P dP))`.
fn backward<T: Real>(p: &Problem<T>, grad: &[T], lse: &[T], [gq, gk, gv]: [Shared<T>; 3]) {
    let z = p.z;
    let block = || vec![T::zero(); BLOCK.min(z.s) * z.t];
    (0..z.batch * z.kv).into_par_iter().for_each_init(
        || (block(), block()),
        |(probabilities, ds), job| {
            let (b, group) = (job / z.kv, z.heads / z.kv);
            let first = job % z.kv * group;
            for (h, i) in (first..first + group).flat_map(|h| (0..z.s).step_by(BLOCK).map(move |i| (h, i))) {
                let (n, keep) = (BLOCK.min(z.s - i), (h, i) != (first, 0));
                let (k, v, key) = (&p.k[z.key(b, h)..], &p.v[z.key(b, h)..], z.key(b, h));
                let (pr, ds) = (&mut probabilities[..n * z.t], &mut ds[..n * z.t]);
                p.scores(b, h, i, n, pr);
                let (at, lse) = (z.query(b, h, i), &lse[(b * z.heads + h) * z.s + i..]);
                pr.chunks_mut(z.t)
                    .zip(lse)
                    .for_each(|(row, l)| row.iter_mut().for_each(|x| *x = (*x - *l).exponential()));
                // SAFETY: every job writes the rows of its own key head and of the query heads that share it.
                unsafe {
                    let g = Matrix::rows(&grad[z.result(b, h, i)..], z.heads * z.d);
                    product((n, z.d, z.t), g, Matrix::columns(v, z.key_row), (ds.as_mut_ptr(), z.t), false, 1.0);
                    product((z.t, n, z.d), Matrix::columns(pr, z.t), g, (gv.at(key), z.key_row), keep, 1.0);
                    for (ds, pr) in ds.chunks_mut(z.t).zip(pr.chunks(z.t)) {
                        let inner = dot(ds, pr, |p| p);
                        ds.iter_mut().zip(pr).for_each(|(d, p)| *d = *p * (*d - inner));
                    }
                    let (rows, columns) = (Matrix::rows(ds, z.t), Matrix::columns(ds, z.t));
                    product((n, z.t, z.d), rows, Matrix::rows(k, z.key_row), (gq.at(at), z.query_row), false, z.scale);
                    let q = Matrix::rows(&p.q[at..], z.query_row);
                    product((z.t, n, z.d), columns, q, (gk.at(key), z.key_row), keep, z.scale);
                }
            }
        },
    );
}
