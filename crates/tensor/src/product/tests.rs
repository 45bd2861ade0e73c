use super::tile::kinds;
use super::*;
use crate::kernel::data;
use crate::{Device, Rng};

fn numbers(len: usize, seed: u64) -> Vec<f32> {
    data(Rng::new(seed).normal(&[len], DType::F32, &Device::Cpu).unwrap().array()).unwrap().to_vec()
}

/// `begin + sum of factor A B`, in f64.
fn expected(
    size: (usize, usize),
    terms: &[(usize, f64, &[f32], &[f32])],
    begin: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let entry = |i: usize, j: usize| {
        let sums = terms.iter().map(|(k, factor, a, b)| {
            let products = (0..*k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * size.1 + j]));
            factor * products.sum::<f64>()
        });
        begin(i, j) + sums.sum::<f64>()
    };
    (0..size.0 * size.1).map(|at| entry(at / size.1, at % size.1)).collect()
}

fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    (0..x.len()).map(|at| x[at % (x.len() / columns) * columns + at / (x.len() / columns)]).collect()
}

/// C has one number more between rows, which must stay.
fn check(got: &[f32], expected: &[f64], n: usize, k: usize, what: &str) {
    for (got, expected) in got.chunks(n + 1).zip(expected.chunks(n)) {
        assert_eq!(got[n], 9.0, "{what}: written beside a row");
        for (got, expected) in got.iter().zip(expected) {
            let error = (f64::from(*got) - expected).abs();
            assert!(error < 1e-6 * (k as f64 + 10.0), "{what}: {got} in place of {expected}");
        }
    }
}

const SIZES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (3, 5, 2),
    (14, 4, 32),
    (15, 7, 33),
    (29, 800, 40),
    (6, 16, 16),
    (40, 1700, 65),
    (900, 3, 17),
    (2, 0, 3),
];

#[test]
fn products_of_all_sizes_and_strides_on_every_kind_of_processor() {
    for kind in kinds() {
        for (m, k, n) in SIZES {
            let (a, b, bias) = (numbers(m * k, 1), numbers(k * n, 2), numbers(n, 3));
            let (at, bt) = (transposed(&a, k.max(1)), transposed(&b, n));
            for (rows, begin) in [(true, Begin::Zero), (false, Begin::Bias(bias.as_ptr())), (true, Begin::Kept)] {
                let of = |by_rows: bool| {
                    let a = if by_rows { Matrix::rows(&a, k) } else { Matrix::columns(&at, m) };
                    (a, if by_rows { Matrix::rows(&b, n) } else { Matrix::columns(&bt, k) })
                };
                let ((a_matrix, _), (_, b_matrix)) = (of(rows), of(!rows));
                for b_matrix in [of(rows).1, b_matrix] {
                    let term = Term { k, a: Operand::Own(a_matrix), b: Operand::Own(b_matrix), factor: 0.5 };
                    let mut c = vec![9.0; m * (n + 1)];
                    // SAFETY: the sizes of the arrays.
                    unsafe { products(kind, (m, n), &[term], (c.as_mut_ptr(), n + 1), begin) };
                    let from = |_: usize, j: usize| match begin {
                        Begin::Zero => 0.0,
                        Begin::Kept => 9.0,
                        Begin::Bias(_) => f64::from(bias[j]),
                    };
                    check(&c, &expected((m, n), &[(k, 0.5, &a, &b)], from), n, k, &format!("{m} x {k} x {n}"));
                }
            }
        }
    }
}

#[test]
fn an_adapter_is_a_term_and_half_precision_is_read_as_it_is() {
    for kind in kinds() {
        for (m, k, n) in SIZES {
            let (a, u, v) = (numbers(m * k, 1), numbers(m * 100, 4), numbers(100 * n, 5));
            for bf in [true, false] {
                let (bf16s, f16s): (Vec<bf16>, Vec<f16>) =
                    numbers(k * n, 2).iter().map(|x| (bf16::from_f32(*x), f16::from_f32(*x))).unzip();
                let b: Vec<f32> = (0..k * n).map(|i| if bf { bf16s[i].to_f32() } else { f16s[i].to_f32() }).collect();
                let held =
                    if bf { Operand::BF16(Matrix::rows(&bf16s, n)) } else { Operand::F16(Matrix::rows(&f16s, n)) };
                let change = Term {
                    k: 100,
                    a: Operand::Own(Matrix::rows(&u, 100)),
                    b: Operand::Own(Matrix::rows(&v, n)),
                    factor: -2.0,
                };
                let terms = [Term { k, a: Operand::Own(Matrix::rows(&a, k)), b: held, factor: 1.0 }, change];
                let expected = expected((m, n), &[(k, 1.0, &a, &b), (100, -2.0, &u, &v)], |_, _| 0.0);
                let mut c = [vec![9.0; m * (n + 1)], vec![9.0; m * (n + 1)]];
                // SAFETY: the sizes of the arrays.
                unsafe {
                    products(kind, (m, n), &terms, (c[0].as_mut_ptr(), n + 1), Begin::Zero);
                    by_gemm((m, n), &terms, (c[1].as_mut_ptr(), n + 1), Begin::Zero);
                }
                c.iter().for_each(|c| check(c, &expected, n, k + 400, &format!("{m} x {k} x {n}, two terms")));
            }
        }
    }
}

/// `x [rows, columns]` in bf16, and how far rows and columns are apart: by rows or by columns, with a gap behind each.
fn held(x: &[f32], columns: usize, turned: bool, gap: usize) -> (Vec<bf16>, [usize; 2]) {
    let rows = x.len() / columns.max(1);
    let [row, column] = if turned { [1, rows + gap] } else { [columns + gap, 1] };
    let mut numbers = vec![bf16::ZERO; rows * row + columns * column];
    x.iter().enumerate().for_each(|(i, x)| numbers[i / columns * row + i % columns * column] = bf16::from_f32(*x));
    (numbers, [row, column])
}

#[test]
fn both_factors_in_bf16_of_all_strides() {
    for kind in kinds() {
        for (m, k, n) in SIZES {
            let rounded = |len: usize, seed: u64| -> Vec<f32> {
                numbers(len, seed).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
            };
            let (a, b, u, v) = (rounded(m * k, 1), rounded(k * n, 2), numbers(m * 3, 4), numbers(3 * n, 5));
            let expected = expected((m, n), &[(k, 1.0, &a, &b), (3, -2.0, &u, &v)], |_, _| 9.0);
            for (turned_a, turned_b, gap) in
                [(false, true, 0), (false, true, 1), (true, false, 0), (false, false, 1), (true, true, 2)]
            {
                let operand = |numbers: &[bf16], [row, column]: [usize; 2]| {
                    Operand::<f32>::BF16(Matrix { start: numbers.as_ptr(), row, column })
                };
                let ((a, of_a), (b, of_b)) = (held(&a, k, turned_a, gap), held(&b, n, turned_b, gap));
                let adapter = [Operand::Own(Matrix::rows(&u, 3)), Operand::Own(Matrix::rows(&v, n))];
                let terms = [
                    Term { k, a: operand(&a, of_a), b: operand(&b, of_b), factor: 1.0 },
                    Term { k: 3, a: adapter[0], b: adapter[1], factor: -2.0 },
                ];
                let mut c = [vec![9.0; m * (n + 1)], vec![9.0; m * (n + 1)]];
                // SAFETY: the sizes of the arrays.
                unsafe {
                    products(kind, (m, n), &terms, (c[0].as_mut_ptr(), n + 1), Begin::Kept);
                    by_gemm((m, n), &terms, (c[1].as_mut_ptr(), n + 1), Begin::Kept);
                }
                let what = format!("{m} x {k} x {n}, {turned_a}, {turned_b}, {gap}");
                c.iter().for_each(|c| check(c, &expected, n, k + 20, &what));
            }
        }
    }
}

#[test]
fn a_number_of_c_does_not_depend_on_its_neighbours() {
    let (m, k, n) = (33, 1000, 70);
    let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
    for kind in kinds() {
        let part = |rows: Range<usize>, columns: Range<usize>| {
            let mut c = vec![0.0; rows.len() * columns.len()];
            // SAFETY: parts of the matrices.
            unsafe {
                let (a, b) = (Matrix::rows(&a, k).part(rows.start, 0), Matrix::rows(&b, n).part(0, columns.start));
                let term = Term { k, a: Operand::Own(a), b: Operand::Own(b), factor: 1.0 };
                products(kind, (rows.len(), columns.len()), &[term], (c.as_mut_ptr(), columns.len()), Begin::Zero);
            }
            c
        };
        let whole = part(0..m, 0..n);
        for (i, j) in [(0, 0), (20, 69), (32, 5)] {
            assert_eq!(part(i..i + 1, j..j + 1)[0], whole[i * n + j]);
        }
    }
}
