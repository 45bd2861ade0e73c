//! Scaled dot-product attention; scores are made in blocks of queries and never stored whole.

use super::call::{Backend, Inputs, Keeps, Kept, Kernels, Op, apply, given, there};
use super::cast::computed_bytes;
use super::softmax::{normalise, softmax};
use crate::kernel::{Data, Matrix, Real, Shared, data, dot, fresh, on_cpu, product};
use crate::{Array, Tensor, cuda};
use amscript_base::bail;
use amscript_base::error::{Error, Result};
use candle_core::Shape;
use rayon::prelude::*;

/// `softmax(scale q k^T + mask) v` per head.
///
/// `q [batch, s, heads, d]`, `k` and `v [batch, t, kv, d]` where `kv` divides `heads`; `mask` is added to the scores and has
/// the shape `[batch or 1, heads or 1, s, t]`, and no gradient. Returns `[batch, s, heads, d]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: Option<&Tensor>) -> Result<Tensor> {
    apply(Attention { scale }, [Some(q), Some(k), Some(v), mask])
}

/// [`attention`] among the tokens of `qkv [batch, s, 3 width]`, which holds the queries, keys and values of each beside each other;
/// returns `[batch, s, width]`.
pub fn self_attention(qkv: &Tensor, heads: usize, scale: f64, mask: Option<&Tensor>) -> Result<Tensor> {
    apply(SelfAttention { heads, scale }, [Some(qkv), mask])
}

/// Sizes of one attention: `q [batch, s, heads, d]`, `k, v [batch, t, kv, d]`, and from one token to the next in them.
#[derive(Clone, Copy)]
pub struct AttentionShape {
    pub batch: usize,
    pub s: usize,
    pub t: usize,
    pub heads: usize,
    pub kv: usize,
    pub d: usize,
    pub scale: f64,
    query_row: usize,
    key_row: usize,
}

impl AttentionShape {
    fn check_mask(&self, mask: Option<&Array>) -> Result<()> {
        let Some(m) = mask else { return Ok(()) };
        let (b, h, s, t) = m.dims4()?;
        if (b != 1 && b != self.batch) || (h != 1 && h != self.heads) || s != self.s || t != self.t {
            let (batch, heads, s, t) = (self.batch, self.heads, self.s, self.t);
            bail!(Shape, "attention: expected a mask [{batch} or 1, {heads} or 1, {s}, {t}], got {:?}", m.dims());
        }
        Ok(())
    }

    /// From one batch and one head to the next in a mask.
    pub fn mask_steps(&self, mask: &Array) -> Result<(usize, usize)> {
        let (b, h, s, t) = mask.dims4()?;
        Ok((if b == 1 { 0 } else { h * s * t }, if h == 1 { 0 } else { s * t }))
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

    fn score_rows(&self) -> usize {
        self.batch * self.heads * self.s
    }

    /// Operations of `products` products of the size of `q k^T`, and a few for each score.
    fn work(&self, products: f64) -> f64 {
        self.score_rows() as f64 * self.t as f64 * (products * 2.0 * self.d as f64 + 8.0)
    }

    /// Bytes of the blocks of scores that threads hold, two each in the backward.
    fn blocks(&self, bytes: usize) -> usize {
        let threads = |jobs: usize| rayon::current_num_threads().min(jobs);
        let forward = threads(self.batch * self.heads * self.s.div_ceil(BLOCK));
        forward.max(2 * threads(self.batch * self.kv)) * BLOCK.min(self.s) * self.t * bytes
    }
}

struct Attention {
    scale: f64,
}

impl Attention {
    fn sizes(&self, [q, k, ..]: Inputs<4>) -> Result<AttentionShape> {
        let ((batch, s, heads, d), (_, t, kv, _)) = (given(q)?.dims4()?, given(k)?.dims4()?);
        Ok(AttentionShape { batch, s, t, heads, kv, d, scale: self.scale, query_row: heads * d, key_row: kv * d })
    }
}

/// The order is q, k, v, mask.
impl Op<4> for Attention {
    /// The log-sum-exp of every score row, `[batch, heads, s]`; none where blocks of scores are made on a card.
    type More = Option<Array>;

    fn name(&self) -> &'static str {
        "attention"
    }

    fn shape(&self, inputs: Inputs<4>) -> Result<Shape> {
        let [q, k, v, mask] = inputs;
        let (q, k, v) = (given(q)?, given(k)?, given(v)?);
        let z = self.sizes(inputs)?;
        if k.dims() != [z.batch, z.t, z.kv, z.d] || v.dims() != k.dims() || !z.heads.is_multiple_of(z.kv) {
            let [q, k, v] = [q, k, v].map(Array::dims);
            bail!(Shape, "attention: expected q [b, s, heads, d] and k, v [b, t, kv, d], got {q:?}, {k:?}, {v:?}");
        }
        z.check_mask(mask)?;
        Ok(q.shape().clone())
    }

    fn keeps(&self, on: Backend, inputs: Inputs<4>, _: [bool; 4]) -> Keeps<4> {
        let all = Keeps::inputs([true; 4]);
        let (Ok(z), Ok(q)) = (self.sizes(inputs), given(inputs[0])) else { return all };
        match on {
            Backend::Card if cuda::attention::on_tensor_cores(q) => {
                Keeps { output: true, ..all.and_bytes(z.score_rows() * size_of::<f32>()) }
            }
            Backend::Card => all,
            _ => all.and_bytes(z.score_rows() * computed_bytes(q.dtype())),
        }
    }

    fn forward(&self, on: Backend, inputs: Inputs<4>, _: [bool; 4]) -> Result<(Array, Option<Array>)> {
        let (z, q) = (self.sizes(inputs)?, given(inputs[0])?);
        match on {
            Backend::Card => cuda::attention::attention(inputs, z),
            _ => on_cpu!(q, attended(inputs, z)),
        }
    }

    fn backward(
        &self,
        kept: Kept<4, Option<Array>>,
        gradient: &Array,
        wanted: [bool; 4],
    ) -> Result<[Option<Array>; 4]> {
        let z = self.sizes(kept.inputs)?;
        match kept.on {
            Backend::Card => cuda::attention::attention_back(kept, gradient, z, wanted),
            _ => on_cpu!(gradient, attended_back(kept, gradient, z, wanted)),
        }
    }

    fn composed(&self, [q, k, v, mask]: [Option<&Tensor>; 4]) -> Result<Tensor> {
        let [q, k, v] = [there(q)?, there(k)?, there(v)?];
        let (batch, _, heads, d) = q.dims4()?;
        let by_head = |x: &Tensor| {
            let (n, own) = (x.dim(1)?, x.dim(2)?);
            let x = x.transpose(1, 2)?.unsqueeze(2)?; // [b, kv, 1, n, d]
            x.broadcast_as((batch, own, heads / own, n, d))?.contiguous()?.reshape((batch, heads, n, d))
        };
        let mut scores = (by_head(q)?.matmul(&by_head(k)?.transpose(2, 3)?.contiguous()?)? * self.scale)?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(&mask.detach()?.to_dtype(q.dtype())?)?;
        }
        softmax(&scores)?.matmul(&by_head(v)?)?.transpose(1, 2)?.contiguous()
    }

    fn work(&self, inputs: Inputs<4>, _: &Shape) -> f64 {
        self.sizes(inputs).map_or(0.0, |z| z.work(2.0))
    }

    fn work_back(&self, inputs: Inputs<4>, _: &Shape, _: [bool; 4]) -> f64 {
        self.sizes(inputs).map_or(0.0, |z| z.work(5.0))
    }

    fn scratch(&self, on: Backend, inputs: Inputs<4>) -> usize {
        let (Ok(z), Ok(q)) = (self.sizes(inputs), given(inputs[0])) else { return 0 };
        match on {
            Backend::Card => cuda::attention::scratch(q, z),
            _ => z.blocks(computed_bytes(q.dtype())),
        }
    }
}

struct SelfAttention {
    heads: usize,
    scale: f64,
}

impl SelfAttention {
    fn sizes(&self, qkv: Option<&Array>) -> Result<AttentionShape> {
        let ((batch, s, all), heads) = (given(qkv)?.dims3()?, self.heads);
        let d = all / (3 * heads);
        Ok(AttentionShape { batch, s, t: s, heads, kv: heads, d, scale: self.scale, query_row: all, key_row: all })
    }
}

/// The order is qkv, mask. A card splits it.
impl Op<2> for SelfAttention {
    type More = Array;

    fn name(&self) -> &'static str {
        "self_attention"
    }

    fn shape(&self, [qkv, mask]: Inputs<2>) -> Result<Shape> {
        let (batch, s, all) = given(qkv)?.dims3()?;
        let heads = self.heads;
        if heads == 0 || !all.is_multiple_of(3 * heads) {
            let shape = [batch, s, all];
            bail!(Shape, "self_attention: expected 3 times {heads} heads beside each other, got shape {shape:?}");
        }
        self.sizes(qkv)?.check_mask(mask)?;
        Ok((batch, s, all / 3).into())
    }

    fn kernels(&self) -> Kernels {
        Kernels::PROCESSOR
    }

    fn keeps(&self, _: Backend, [qkv, _]: Inputs<2>, _: [bool; 2]) -> Keeps<2> {
        let lse = |x: &Array| self.sizes(qkv).map_or(0, |z| z.score_rows()) * computed_bytes(x.dtype());
        Keeps::inputs([true; 2]).and_bytes(qkv.map_or(0, lse))
    }

    fn forward(&self, _: Backend, [qkv, mask]: Inputs<2>, _: [bool; 2]) -> Result<(Array, Array)> {
        on_cpu!(given(qkv)?, packed(given(qkv)?, mask, self.sizes(qkv)?))
    }

    fn backward(&self, kept: Kept<2, Array>, gradient: &Array, _: [bool; 2]) -> Result<[Option<Array>; 2]> {
        let z = self.sizes(kept.inputs[0])?;
        Ok([Some(on_cpu!(gradient, packed_back(kept, gradient, z))?), None])
    }

    fn composed(&self, [qkv, mask]: [Option<&Tensor>; 2]) -> Result<Tensor> {
        let (qkv, heads) = (there(qkv)?, self.heads);
        let (batch, s, all) = qkv.dims3()?;
        let part = |i: usize| qkv.narrow(2, i * all / 3, all / 3)?.reshape((batch, s, heads, all / (3 * heads)));
        attention(&part(0)?, &part(1)?, &part(2)?, self.scale, mask)?.reshape((batch, s, all / 3))
    }

    fn work(&self, [qkv, _]: Inputs<2>, _: &Shape) -> f64 {
        self.sizes(qkv).map_or(0.0, |z| z.work(2.0))
    }

    fn work_back(&self, [qkv, _]: Inputs<2>, _: &Shape, _: [bool; 2]) -> f64 {
        self.sizes(qkv).map_or(0.0, |z| z.work(5.0))
    }

    fn scratch(&self, _: Backend, [qkv, _]: Inputs<2>) -> usize {
        let blocks = |x: &Array| self.sizes(qkv).map_or(0, |z| z.blocks(computed_bytes(x.dtype())));
        qkv.map_or(0, blocks)
    }
}

/// Queries per block of scores.
const BLOCK: usize = 128;

/// The data of one attention on the CPU; `lse` is the log-sum-exp of every score row, `[batch, heads, s]`.
struct Problem<'a, T> {
    q: Data<'a, T>,
    k: Data<'a, T>,
    v: Data<'a, T>,
    mask: Option<Masked<'a, T>>,
    z: AttentionShape,
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

impl<'a, T: Real> Problem<'a, T> {
    fn apart([q, k, v, mask]: Inputs<'a, 4>, z: AttentionShape) -> Result<Self> {
        Ok(Self { q: data(given(q)?)?, k: data(given(k)?)?, v: data(given(v)?)?, mask: masked(mask, z)?, z })
    }

    fn packed(qkv: &'a Array, mask: Option<&'a Array>, z: AttentionShape) -> Result<Self> {
        let width = if qkv.elem_count() == 0 { 0 } else { z.heads * z.d };
        let part = |i: usize| Ok::<_, Error>(data::<T>(qkv)?.skip(i * width));
        Ok(Self { q: part(0)?, k: part(1)?, v: part(2)?, mask: masked(mask, z)?, z })
    }
}

/// A mask's numbers, and [`AttentionShape::mask_steps`].
type Masked<'a, T> = (Data<'a, T>, usize, usize);

fn masked<T: Real>(mask: Option<&Array>, z: AttentionShape) -> Result<Option<Masked<'_, T>>> {
    let Some(mask) = mask else { return Ok(None) };
    let (per_batch, per_head) = z.mask_steps(mask)?;
    Ok(Some((data::<T>(mask)?, per_batch, per_head)))
}

fn attended<T: Real>(inputs: Inputs<4>, z: AttentionShape) -> Result<(Array, Option<Array>)> {
    let q = given(inputs[0])?;
    let (out, lse) = forward(&Problem::<T>::apart(inputs, z)?);
    let lse = Array::from_vec(lse, (z.batch, z.heads, z.s), q.device())?;
    Ok((Array::from_vec(out, q.dims(), q.device())?, Some(lse)))
}

fn attended_back<T: Real>(
    kept: Kept<4, Option<Array>>,
    gradient: &Array,
    z: AttentionShape,
    wanted: [bool; 4],
) -> Result<[Option<Array>; 4]> {
    let zeros = |i: usize| vec![T::zero(); kept.shapes[i].iter().product()];
    let mut numbers = [zeros(0), zeros(1), zeros(2)];
    let places = numbers.each_mut().map(|g| Shared(g.as_mut_ptr()));
    let lse = data::<T>(given(kept.more.as_ref())?)?;
    backward(&Problem::<T>::apart(kept.inputs, z)?, &data::<T>(gradient)?, &lse, places);
    let mut gradients = [const { None }; 4];
    for (i, numbers) in numbers.into_iter().enumerate() {
        if wanted[i] {
            gradients[i] = Some(Array::from_vec(numbers, kept.shapes[i], gradient.device())?);
        }
    }
    Ok(gradients)
}

fn packed<T: Real>(qkv: &Array, mask: Option<&Array>, z: AttentionShape) -> Result<(Array, Array)> {
    let (out, lse) = forward(&Problem::<T>::packed(qkv, mask, z)?);
    let out = Array::from_vec(out, (z.batch, z.s, z.heads * z.d), qkv.device())?;
    Ok((out, Array::from_vec(lse, (z.batch, z.heads, z.s), qkv.device())?))
}

fn packed_back<T: Real>(kept: Kept<2, Array>, gradient: &Array, z: AttentionShape) -> Result<Array> {
    let [qkv, mask] = kept.inputs;
    let (qkv, width) = (given(qkv)?, z.heads * z.d);
    let (problem, g, lse) = (Problem::<T>::packed(qkv, mask, z)?, data::<T>(gradient)?, data::<T>(kept.more)?);
    let out = fresh(qkv.elem_count(), |out: &mut [T]| {
        // SAFETY: each of the three starts inside the first token.
        let places = [0, 1, 2].map(|i| Shared(unsafe { out.as_mut_ptr().add(i * width) }));
        backward(&problem, &g, &lse, places);
    });
    Ok(Array::from_vec(out, qkv.dims(), qkv.device())?)
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

/// A constant beside an input, f64 where that is, else f32.
#[cfg(test)]
pub(super) fn beside(x: &Tensor, shape: &[usize], seed: u64) -> Result<Tensor> {
    use crate::{DType, Device, Rng};
    let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    Rng::new(seed).normal(shape, DType::F64, &Device::Cpu)?.to_dtype(dtype)?.to_device(x.device())
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::cases::case;
    let mut all = Vec::new();
    // batch, s, t, heads, kv, d
    let apart = [
        (2, 5, 6, 4, 2, 3),
        (1, 150, 140, 2, 2, 4),
        (1, 5, 7, 2, 2, 8),
        (2, 70, 70, 2, 1, 40),
        (1, 65, 130, 3, 3, 72),
        (1, 40, 33, 2, 2, 128),
        (1, 9, 9, 1, 1, 136),
    ];
    for (batch, s, t, heads, kv, d) in apart {
        let shapes: &[&[usize]] = &[&[batch, s, heads, d], &[batch, t, kv, d], &[batch, t, kv, d]];
        let (name, scale) = (format!("attention {s} x {t}, {heads} / {kv} heads of {d}"), 1.0 / (d as f64).sqrt());
        all.push(case(&name, shapes, move |i| attention(&i[0], &i[1], &i[2], scale, None)));
        for masks in [[batch, 1], [1, heads]].into_iter().take(batch) {
            all.push(case(format!("{name}, masks {masks:?}"), shapes, move |i| {
                let mask = beside(&i[0], &[masks[0], masks[1], s, t], 4)?;
                attention(&i[0], &i[1], &i[2], scale, Some(&mask))
            }));
        }
    }
    let (s, t) = (20, 70);
    all.push(case("causal attention", &[&[1, s, 2, 16], &[1, t, 2, 16], &[1, t, 2, 16]], move |i| {
        let hidden = (0..s * t).map(|i| if i % t > i / t { f64::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(hidden, (1, 1, s, t), i[0].device())?;
        attention(&i[0], &i[1], &i[2], 0.25, Some(&mask.to_dtype(beside(&i[0], &[1], 1)?.dtype())?))
    }));
    for (tokens, masked) in [(5, true), (150, false)] {
        all.push(case(format!("self_attention of {tokens}"), &[&[2, tokens, 3 * 4 * 2]], move |i| {
            let mask = masked.then(|| beside(&i[0], &[1, 4, tokens, tokens], 8)).transpose()?;
            self_attention(&i[0], 4, 0.7, mask.as_ref())
        }));
    }
    all
}
