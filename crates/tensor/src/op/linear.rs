//! Matrix product with a frozen or trainable weight, bias, and a low-rank adapter in the same node.

use super::call::{Backend, Inputs, Keeps, Kept, Kernels, Op, apply, given, there};
use crate::kernel::{Real, Shared, column_sums, data, fresh, on_cpu, shares};
use crate::product::{Begin, Held, Term};
use crate::{Array, Tensor, cuda, raw};
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::{D, Shape};
use rayon::prelude::*;

/// A low-rank change of a weight: `scale * b a`, with `a [rank, in]` and `b [out, rank]`.
#[derive(Clone, Debug)]
pub struct Lora {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f64,
}

/// `y = x W^T + bias + scale (x A^T) B^T` for `x [.., in]`, `weight [out, in]`; returns `[.., out]` in `x`'s type.
///
/// Weight, bias and adapter may be of other float types: they are cast for the product and not kept so; gradients come in
/// their own. Half-precision products on the CPU have sums in f32, of input and weight as they are.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, lora: Option<&Lora>) -> Result<Tensor> {
    let (a, b) = (lora.map(|l| &l.a), lora.map(|l| &l.b));
    apply(Linear { scale: lora.map_or(1.0, |l| l.scale) }, [Some(x), Some(weight), bias, a, b])
}

/// Of `[x, weight, bias, a, b]`.
struct Linear {
    scale: f64,
}

impl Op<5> for Linear {
    /// `x A^T`, `[rows, rank]`, where the gradient of B may be wanted.
    type More = Option<Array>;

    fn name(&self) -> &'static str {
        "linear"
    }

    fn shape(&self, [x, weight, bias, a, b]: Inputs<5>) -> Result<Shape> {
        let (out, inner) = given(weight)?.dims2()?;
        let mut dims = given(x)?.dims().to_vec();
        match dims.last_mut() {
            Some(last) if *last == inner => *last = out,
            _ => bail!(Shape, "linear: expected {inner} input features, got shape {dims:?}"),
        }
        let rank = a.map_or(Ok(0), |a| a.dim(0))?;
        let fits = |x: Option<&Array>, dims: &[usize]| x.is_none_or(|x| x.dims() == dims);
        if !fits(bias, &[out]) || !fits(a, &[rank, inner]) || !fits(b, &[out, rank]) {
            let got = [bias, a, b].map(|x| x.map(Array::dims));
            bail!(
                Shape,
                "linear: expected bias [{out}], A [rank, {inner}], B [{out}, rank], where there are any, got {got:?}"
            );
        }
        Ok(dims.into())
    }

    fn kernels(&self) -> Kernels {
        Kernels { strided: true, half: &[0, 1], ..Kernels::BOTH }
    }

    fn keeps(&self, on: Backend, inputs: Inputs<5>, [gx, gw, _, ga, gb]: [bool; 5]) -> Keeps<5> {
        // Frozen layers need no input to go back through.
        let kept = Keeps::inputs([gw || ga, gx, false, gx, gx || ga]);
        let [rows, _, _, rank] = sizes(inputs);
        let size = inputs[0].map_or(0, |x| x.dtype().size_in_bytes());
        let size = if on == Backend::Processor { size.max(size_of::<f32>()) } else { size };
        kept.and_bytes(if gb { rows * rank * size } else { 0 })
    }

    fn forward(&self, on: Backend, inputs: Inputs<5>, wanted: [bool; 5]) -> Result<(Array, Option<Array>)> {
        let [x, weight, bias, a, b] = inputs;
        let rows = rows(x)?;
        let hidden = a.map(|a| product(on, &rows, &a.t()?, None, None)).transpose()?;
        let b = b.map(Array::t).transpose()?;
        let low_rank = hidden.as_ref().zip(b.as_ref()).map(|(hidden, b)| (hidden, b, self.scale));
        let y = product(on, &rows, &given(weight)?.t()?, bias, low_rank)?;
        Ok((y.reshape(self.shape(inputs)?)?, hidden.filter(|_| wanted[4])))
    }

    fn backward(
        &self,
        kept: Kept<5, Option<Array>>,
        gradient: &Array,
        [gx, gw, gbias, ga, gb]: [bool; 5],
    ) -> Result<[Option<Array>; 5]> {
        let (on, [x, weight, _, a, b]) = (kept.on, kept.inputs);
        let g = gradient.reshape(((), gradient.dim(D::Minus1)?))?;
        // [rows, rank]
        let through = b
            .filter(|_| gx || ga)
            .map(|b| product(on, &g, &raw::affine(b, self.scale, 0.0)?, None, None))
            .transpose()?;
        let through = through.as_ref();
        let of_x = || -> Result<Array> {
            let low_rank = a.zip(through).map(|(a, through)| (through, a, 1.0));
            Ok(product(on, &g, given(weight)?, None, low_rank)?.reshape(kept.shapes[0])?)
        };
        let of_b = || rows_product(on, &g, &raw::affine(given(kept.more.as_ref())?, self.scale, 0.0)?);
        Ok([
            gx.then(of_x).transpose()?,
            gw.then(|| rows_product(on, &g, &rows(x)?)).transpose()?,
            gbias.then(|| bias_gradient(on, &g)).transpose()?,
            ga.then(|| rows_product(on, given(through)?, &rows(x)?)).transpose()?,
            gb.then(of_b).transpose()?,
        ])
    }

    fn composed(&self, [x, weight, bias, a, b]: [Option<&Tensor>; 5]) -> Result<Tensor> {
        let (x, weight) = (there(x)?, there(weight)?);
        let cast = |w: &Tensor| w.to_dtype(x.dtype());
        let mut dims = x.dims().to_vec();
        let (out, inner) = weight.dims2()?;
        let rows = x.reshape((x.elem_count() / inner.max(1), inner))?;
        let mut y = rows.matmul(&cast(weight)?.t()?)?;
        if let Some(bias) = bias {
            y = y.broadcast_add(&cast(bias)?)?;
        }
        if let Some((a, b)) = a.zip(b) {
            y = (y + (rows.matmul(&cast(a)?.t()?)?.matmul(&cast(b)?.t()?)? * self.scale)?)?;
        }
        dims[x.rank() - 1] = out;
        y.reshape(dims)
    }

    fn work(&self, inputs: Inputs<5>, result: &Shape) -> f64 {
        let [rows, inner, out, rank] = sizes(inputs).map(|n| n as f64);
        let bias = if inputs[2].is_some() { result.elem_count() as f64 } else { 0.0 };
        2.0 * rows * (inner * out + rank * (inner + out)) + bias
    }

    fn work_back(&self, inputs: Inputs<5>, result: &Shape, [gx, gw, gbias, ga, gb]: [bool; 5]) -> f64 {
        let [rows, inner, out, rank] = sizes(inputs).map(|n| n as f64);
        let times = |wanted: &[bool]| wanted.iter().filter(|w| **w).count() as f64;
        let whole = inner * out * times(&[gx, gw]);
        let low_rank = rank * (out * times(&[gx || ga, gb]) + inner * times(&[gx, ga]));
        2.0 * rows * (whole + low_rank) + result.elem_count() as f64 * times(&[gbias])
    }

    /// Weights of another type, cast for a card.
    fn scratch(&self, on: Backend, inputs: Inputs<5>) -> usize {
        let Some(x) = inputs[0].filter(|_| on == Backend::Card) else { return 0 };
        let cast = inputs.iter().flatten().filter(|w| w.dtype() != x.dtype());
        cast.map(|w| w.elem_count() * x.dtype().size_in_bytes()).sum()
    }
}

/// Rows, inputs and outputs of the product, and the rank of its adapter.
fn sizes([x, weight, _, a, _]: Inputs<5>) -> [usize; 4] {
    let side = |x: Option<&Array>, i: usize| x.and_then(|x| x.dims().get(i).copied()).unwrap_or(0);
    let (out, inner) = (side(weight, 0), side(weight, 1));
    [x.map_or(0, Array::elem_count) / inner.max(1), inner, out, side(a, 0)]
}

/// `x` as a matrix, `[rows, in]`.
fn rows(x: Option<&Array>) -> Result<Array> {
    let x = given(x)?;
    Ok(x.reshape(((), x.dim(D::Minus1)?))?)
}

/// A product of matrices with a factor.
type Scaled<'a> = (&'a Array, &'a Array, f64);

/// `a b + bias + factor c d` for matrices of any strides and a `bias` per column.
fn product(on: Backend, a: &Array, b: &Array, bias: Option<&Array>, also: Option<Scaled>) -> Result<Array> {
    match on {
        Backend::Card => cuda::linear::product(a, b, bias, also),
        _ => on_cpu!(a, product_cpu(a, b, bias, also)),
    }
}

fn product_cpu<T: Real>(a: &Array, b: &Array, bias: Option<&Array>, also: Option<Scaled>) -> Result<Array> {
    let ((m, k), n) = (a.dims2()?, b.dim(1)?);
    let bias = bias.map(|bias| bias.contiguous()).transpose()?;
    let bias = bias.as_ref().map(data::<T>).transpose()?;
    let (left, right) = (Held::<T>::of(a)?, Held::<T>::of(b)?);
    let also = match also {
        Some((c, d, factor)) => Some((c, d, factor, Held::<T>::of(c)?, Held::<T>::of(d)?)),
        None => None,
    };
    let first = Term { k, a: left.operand(a), b: right.operand(b), factor: 1.0 };
    let second = also.as_ref().map(|(c, d, factor, left, right)| Term {
        k: c.dims()[1],
        a: left.operand(c),
        b: right.operand(d),
        factor: *factor,
    });
    let terms: Vec<Term<T>> = [Some(first), second].into_iter().flatten().collect();
    let out = fresh(m * n, |out| {
        let c = Shared(out.as_mut_ptr());
        // SAFETY: the shapes of the arrays; every share writes its own part of the new output.
        shares((m, k, n)).into_par_iter().for_each(|(rows, columns)| unsafe {
            let (i, j) = (rows.start, columns.start);
            let part = |t: &Term<T>| Term { a: t.a.part(i, 0), b: t.b.part(0, j), ..*t };
            let begin = bias.as_ref().map_or(Begin::Zero, |bias| Begin::Bias(bias[columns.clone()].as_ptr()));
            let terms: Vec<Term<T>> = terms.iter().map(part).collect();
            T::products((rows.len(), columns.len()), &terms, (c.at(i * n + j), n), begin);
        });
    });
    Ok(Array::from_vec(out, (m, n), a.device())?)
}

/// `g^T x` for rows of both.
fn rows_product(on: Backend, g: &Array, x: &Array) -> Result<Array> {
    match on {
        Backend::Card => cuda::linear::rows_product(g, x),
        _ => product(on, &g.t()?, x, None, None),
    }
}

/// Sum over the rows of `g [rows, out]`.
fn bias_gradient(on: Backend, g: &Array) -> Result<Array> {
    match on {
        Backend::Card => cuda::norm::column_sums(g),
        _ => on_cpu!(g, bias_gradient_cpu(g)),
    }
}

fn bias_gradient_cpu<T: Real>(g: &Array) -> Result<Array> {
    let (rows, out) = g.dims2()?;
    let g = g.to_dtype(T::DTYPE)?.contiguous()?;
    let numbers = data::<T>(&g)?;
    Ok(Array::from_vec(column_sums(numbers.len(), rows, out, |i| numbers[i]), out, g.device())?)
}

#[cfg(test)]
pub(super) fn cases() -> Vec<super::cases::Case> {
    use super::cases::case;
    let adapter = |i: &[Tensor]| Lora { a: i[3].clone(), b: i[4].clone(), scale: 0.7 };
    let mut all = vec![
        // More columns than a tile has, and several threads.
        case("wide linear", &[&[5, 256], &[131, 256]], |i| linear(&i[0], &i[1], None, None)),
        case("linear of any strides", &[&[3, 2, 5], &[3, 7], &[7], &[3, 2], &[2, 7]], |i| {
            let lora = Lora { a: i[3].t()?, b: i[4].t()?, scale: -0.3 };
            linear(&i[0].transpose(0, 2)?, &i[1].t()?, Some(&i[2]), Some(&lora))
        }),
        case("linear with an adapter", &[&[4, 6], &[3, 6], &[1, 6], &[3, 1]], |i| {
            linear(&i[0], &i[1], None, Some(&Lora { a: i[2].clone(), b: i[3].clone(), scale: 2.0 }))
        }),
    ];
    for (rows, inner, out) in [(3, 5, 4), (3, 5, 7), (9, 16, 8)] {
        let shapes: [&[usize]; 5] = [&[2, rows, inner], &[out, inner], &[out], &[2, inner], &[out, 2]];
        let whole = move |i: &[Tensor]| linear(&i[0], &i[1], Some(&i[2]), Some(&adapter(i)));
        all.push(case("linear with bias and adapter", &shapes, whole));
        all.push(case("linear without bias", &shapes[..2], |i| linear(&i[0], &i[1], None, None)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Device, Rng};

    fn random(shape: &[usize], seed: u64) -> Tensor {
        Rng::new(seed).normal(shape, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (x, weight) = (random(&[2, 5], 1), random(&[3, 5], 2));
        let message = |error: Result<Tensor>| error.unwrap_err().message;
        let narrow = message(linear(&random(&[2, 4], 3), &weight, None, None));
        assert_eq!(narrow, "linear: expected 5 input features, got shape [2, 4]");
        assert!(message(linear(&x, &weight, Some(&random(&[2], 4)), None)).contains("expected bias [3]"));
        let lora = Lora { a: random(&[2, 4], 5), b: random(&[3, 2], 6), scale: 1.0 };
        assert!(message(linear(&x, &weight, None, Some(&lora))).contains("A [rank, 5]"));
    }

    #[test]
    fn gradients_come_in_the_types_of_their_inputs() {
        let x = random(&[4, 6], 1).to_dtype(DType::BF16).unwrap().leaf();
        let lora = Lora { a: random(&[2, 6], 2).leaf(), b: random(&[3, 2], 3).leaf(), scale: 0.5 };
        let weight = random(&[3, 6], 4).to_dtype(DType::F16).unwrap();
        let y = linear(&x, &weight, None, Some(&lora)).unwrap();
        assert_eq!(y.dtype(), DType::BF16);
        let ones = y.ones_like().unwrap();
        let gradients = crate::grad::pullback(&y, &ones, &[x, lora.a, lora.b]).unwrap();
        let types: Vec<DType> = gradients.iter().map(Tensor::dtype).collect();
        assert_eq!(types, [DType::BF16, DType::F32, DType::F32]);
    }
}
