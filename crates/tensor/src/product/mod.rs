//! Products of f32 matrices at the rate of the processor.
//!
//! Decisions:
//! * **Packed as they are read.** Lines of A and B are laid side by side for each product, a block at a time, and a tile of C stays in
//!   registers (Goto and van de Geijn 2008). Weights are not kept packed: that would win what reading them once costs, nothing to be seen
//!   at 320 rows and a fifth at 64 that come from memory anyway; they would no longer be the numbers that adapters are added to and files
//!   are written from, and the input gradient wants them the other way round.
//! * **Terms, not calls.** `C = bias + A B + s U V` is one product whose inner dimension is that of A and U: an adapter costs its own
//!   operations and no second walk over C.
//! * **Half precision is widened in the packing**, so that weights of two bytes cost half the memory traffic and no copy. Where both factors
//!   are bf16 and the processor has products of pairs (AVX512-BF16), pairs of them are packed as they are: two multiplications in place of one,
//!   with sums in f32 as before (subnormal numbers count as zero there).
//! * The instructions are chosen when the program runs. Where there are none for it, for f64, and where B lies by rows, `gemm` computes.

mod pack;
pub mod rate;
mod tile;

use crate::Array;
use crate::kernel::{Data, Matrix, Real, fresh, strided};
use amscript_base::error::Result;
use candle_core::DType;
use half::{bf16, f16};
use pack::{Number, pack, pairs};
use std::ops::Range;
use tile::Tile;
pub use tile::{Begin, Kind, kind};

/// A factor of a product, in the type that it is held in.
#[derive(Clone, Copy)]
pub enum Operand<T> {
    Own(Matrix<T>),
    BF16(Matrix<bf16>),
    F16(Matrix<f16>),
}

impl<T> Operand<T> {
    /// [`Matrix::part`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn part(self, i: usize, j: usize) -> Self {
        unsafe {
            match self {
                Self::Own(m) => Self::Own(m.part(i, j)),
                Self::BF16(m) => Self::BF16(m.part(i, j)),
                Self::F16(m) => Self::F16(m.part(i, j)),
            }
        }
    }

    fn transposed(self) -> Self {
        match self {
            Self::Own(m) => Self::Own(m.transposed()),
            Self::BF16(m) => Self::BF16(m.transposed()),
            Self::F16(m) => Self::F16(m.transposed()),
        }
    }
}

/// Read access to a matrix that may be of half precision.
pub enum Held<'a, T> {
    Own(Data<'a, T>),
    BF16(Data<'a, bf16>),
    F16(Data<'a, f16>),
}

impl<'a, T: Real> Held<'a, T> {
    pub fn of(x: &'a Array) -> Result<Self> {
        Ok(match x.dtype() {
            DType::BF16 => Self::BF16(strided(x)?),
            DType::F16 => Self::F16(strided(x)?),
            _ => Self::Own(strided(x)?),
        })
    }

    /// Of the matrix that this was made of.
    pub fn operand(&self, x: &Array) -> Operand<T> {
        match self {
            Self::Own(data) => Operand::Own(Matrix::of(x, data)),
            Self::BF16(data) => Operand::BF16(Matrix::of(x, data)),
            Self::F16(data) => Operand::F16(Matrix::of(x, data)),
        }
    }
}

/// `factor * A B` for `A [m, k]` and `B [k, n]`.
#[derive(Clone, Copy)]
pub struct Term<T> {
    pub k: usize,
    pub a: Operand<T>,
    pub b: Operand<T>,
    pub factor: f64,
}

impl<T> Term<T> {
    /// Whether both factors are of the product's own type and B lies by rows, which gemm reads faster by a few percent.
    pub fn by_rows(&self) -> bool {
        matches!((&self.a, &self.b), (Operand::Own(_), Operand::Own(Matrix { column: 1, .. })))
    }
}

/// Numbers per line in a block: a panel of B then stays in the second cache.
const DEPTH: usize = 768;
/// Rows of A in a block at most.
const ROWS: usize = 896;

/// Steps `steps` of a term.
#[derive(Clone)]
struct Piece<'a> {
    term: &'a Term<f32>,
    steps: Range<usize>,
}

impl Piece<'_> {
    /// Numbers of a packed line.
    fn len(&self, by: Steps) -> usize {
        self.steps.len().div_ceil(by.step)
    }
}

/// How tiles take steps of k: one by one as f32, or two of bf16 at once.
#[derive(Clone, Copy)]
struct Steps {
    step: usize,
    tile: unsafe fn(usize, Tile),
}

impl Kind {
    fn singly(self) -> Steps {
        Steps { step: 1, tile: self.tile }
    }

    fn steps(self, term: &Term<f32>) -> Steps {
        match (self.pairs, term) {
            (Some(tile), Term { a: Operand::BF16(_), b: Operand::BF16(_), factor: 1.0, .. }) => Steps { step: 2, tile },
            _ => self.singly(),
        }
    }
}

/// Sums of lines of at most [`DEPTH`] numbers, together all terms.
fn blocks(kind: Kind, terms: &[Term<f32>]) -> Vec<(Steps, Vec<Piece<'_>>)> {
    let mut blocks: Vec<(Steps, Vec<Piece>)> = Vec::new();
    let mut room = 0;
    for term in terms {
        let by = kind.steps(term);
        // As many steps in each block of a term.
        let (lines, most) = (term.k.div_ceil(by.step), term.k.div_ceil(by.step * DEPTH));
        let depth = by.step * lines.div_ceil(most.max(1)).max(1);
        for first in (0..term.k).step_by(depth) {
            let piece = Piece { term, steps: first..(first + depth).min(term.k) };
            let len = piece.len(by);
            match blocks.last_mut().filter(|(others, _)| len <= room && others.step == by.step) {
                Some((_, block)) => block.push(piece),
                None => {
                    blocks.push((by, vec![piece]));
                    room = DEPTH + DEPTH / 8; // an adapter goes with the last steps of its weight
                }
            }
            room -= len.min(room);
        }
    }
    if blocks.is_empty() {
        blocks.push((kind.singly(), Vec::new())); // nothing is added, but C is written
    }
    blocks
}

/// The sum of `terms` and `begin` into `C [m, n]`, on this thread; C has `row` numbers between rows.
///
/// # Safety
/// All matrices lie inside their allocations, C overlaps none of them, and the processor is of this kind.
pub unsafe fn products(
    kind: Kind,
    (m, n): (usize, usize),
    terms: &[Term<f32>],
    (c, row): (*mut f32, usize),
    begin: Begin<f32>,
) {
    let blocks = blocks(kind, terms);
    let depth = blocks.iter().map(|(by, pieces)| numbers(*by, pieces)).max().unwrap_or(0);
    let share = m.div_ceil(m.div_ceil(ROWS).max(1)).max(1);
    let panels = |rows: usize| rows.div_ceil(kind.rows);
    let mut packed_a = room(panels(share) * kind.row_step * depth);
    let mut packed_b = room(kind.columns * depth);
    for first in (0..m).step_by(share) {
        let rows = first..(first + share).min(m);
        for (i, (by, pieces)) in blocks.iter().enumerate() {
            let begin = if i == 0 { begin } else { Begin::Kept };
            let block = Block { kind, by: *by, pieces, panels: panels(rows.len()), rows: rows.clone(), depth };
            // SAFETY: as the caller says; there is room for a block of the greatest depth.
            unsafe {
                block.pack_a(&mut packed_a);
                for column in (0..n).step_by(kind.columns) {
                    let columns = column..(column + kind.columns).min(n);
                    block.multiply(&packed_a, &mut packed_b, columns, (c, row), begin);
                }
            }
        }
    }
}

/// Of a packed line.
fn numbers(by: Steps, pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.len(by)).sum()
}

/// Rows of C times a few steps of k.
struct Block<'a> {
    kind: Kind,
    by: Steps,
    pieces: &'a [Piece<'a>],
    rows: Range<usize>,
    panels: usize,
    /// Numbers of a line that there is room for in a panel.
    depth: usize,
}

impl Block<'_> {
    /// Rows of a panel; all have as many, or one more.
    fn panel(&self, p: usize) -> Range<usize> {
        let at = |p: usize| self.rows.start + p * self.rows.len() / self.panels;
        at(p)..at(p + 1)
    }

    unsafe fn pack_a(&self, to: &mut [f32]) {
        let width = self.kind.row_step;
        for p in 0..self.panels {
            let (rows, mut at) = (self.panel(p), p * width * self.depth);
            for piece in self.pieces {
                // SAFETY: as the caller of `products` says.
                unsafe {
                    let columns = piece.term.a.part(rows.start, piece.steps.start).transposed();
                    self.pack(columns, (piece.steps.len(), rows.len()), &mut to[at..], width, piece.term.factor as f32);
                }
                at += piece.len(self.by) * width;
            }
        }
    }

    unsafe fn pack_b(&self, to: &mut [f32], columns: &Range<usize>) {
        let (width, mut at) = (self.kind.columns, 0);
        for piece in self.pieces {
            // SAFETY: as the caller of `products` says.
            unsafe {
                let part = piece.term.b.part(piece.steps.start, columns.start);
                self.pack(part, (piece.steps.len(), columns.len()), &mut to[at..], width, 1.0);
            }
            at += piece.len(self.by) * width;
        }
    }

    unsafe fn pack(&self, x: Operand<f32>, size: (usize, usize), to: &mut [f32], width: usize, factor: f32) {
        // SAFETY: as the caller of `products` says.
        unsafe {
            match x {
                Operand::BF16(x) if self.by.step == 2 => pairs(x, size, to, width),
                Operand::Own(x) => pack(x, size, to, width, |x| factor * x),
                Operand::BF16(x) => pack(x, size, to, width, |x| factor * x.wide()),
                Operand::F16(x) => pack(x, size, to, width, |x| factor * x.wide()),
            }
        }
    }

    /// All rows of some columns.
    unsafe fn multiply(
        &self,
        a: &[f32],
        packed: &mut [f32],
        columns: Range<usize>,
        (c, row): (*mut f32, usize),
        begin: Begin<f32>,
    ) {
        let kind = self.kind;
        // SAFETY: as the caller of `products` says.
        unsafe { self.pack_b(packed, &columns) };
        let k = numbers(self.by, self.pieces);
        for p in 0..self.panels {
            let (rows, a) = (self.panel(p), &a[p * kind.row_step * self.depth..]);
            // SAFETY: panels are packed; C has these rows and columns.
            unsafe {
                let (c, begin) = (c.add(rows.start * row + columns.start), begin.from(columns.start));
                let (a, b) = (a.as_ptr(), packed.as_ptr());
                let tile = Tile { k, a, b, places: std::ptr::null(), c, c_row: row, begin };
                match columns.len() == kind.columns {
                    true => (self.by.tile)(rows.len(), tile),
                    false => narrow(kind, self.by, (rows.len(), columns.len()), tile),
                }
            }
        }
    }
}

/// A left factor `[m, k]`, packed for several products.
pub struct Left {
    kind: Kind,
    m: usize,
    k: usize,
    packed: Vec<f32>,
}

impl Left {
    /// Steps of k at which a panel of B still stays in the second cache.
    pub const DEPTH: usize = DEPTH;

    /// # Safety
    /// The matrix lies inside its allocation.
    pub unsafe fn new(kind: Kind, (m, k): (usize, usize), a: Matrix<f32>) -> Self {
        let term = Term { k, a: Operand::Own(a), b: Operand::Own(a), factor: 1.0 };
        let block = Block {
            kind,
            by: kind.singly(),
            pieces: &[Piece { term: &term, steps: 0..k }],
            rows: 0..m,
            panels: m.div_ceil(kind.rows),
            depth: k,
        };
        let mut packed = room(block.panels * kind.row_step * k);
        // SAFETY: as the caller says.
        unsafe { block.pack_a(&mut packed) };
        Self { kind, m, k, packed }
    }

    /// `C [m, n]` of panels of `B [k, n]`: `[n / columns, k, columns]`.
    pub fn times(&self, b: &[f32], c: &mut [f32]) {
        self.tiles(b, c, None);
    }

    /// `C [m, n]` of `B [k, n]`, whose lines begin at `places` and may overlap.
    pub fn times_spread(&self, b: &[f32], places: &[usize], c: &mut [f32]) {
        self.tiles(b, c, Some(places));
    }

    fn tiles(&self, b: &[f32], c: &mut [f32], places: Option<&[usize]>) {
        let (kind, k, n) = (self.kind, self.k, c.len() / self.m);
        let there = match places {
            None => b.len() == k * n,
            Some(places) => places.len() == k && places.iter().all(|at| at + n <= b.len()),
        };
        assert!(there && n.is_multiple_of(kind.columns), "packed product: {} numbers for {n} columns", b.len());
        let (make, between, places) = match places {
            None => (kind.tile, k * kind.columns, std::ptr::null()),
            Some(places) => (kind.spread, kind.columns, places.as_ptr()),
        };
        let (by, rows) = (kind.singly(), 0..self.m);
        let block = Block { kind, by, pieces: &[], rows, panels: self.m.div_ceil(kind.rows), depth: k };
        for j in 0..n / kind.columns {
            for p in 0..block.panels {
                let rows = block.panel(p);
                let (a, c) = (&self.packed[p * kind.row_step * k..], &mut c[rows.start * n + j * kind.columns..]);
                let (a, b, c) = (a.as_ptr(), b[j * between..].as_ptr(), c.as_mut_ptr());
                // SAFETY: panels are packed, or lines as long as was looked at; C has these rows and columns.
                unsafe { make(rows.len(), Tile { k, a, b, places, c, c_row: n, begin: Begin::Zero }) };
            }
        }
    }
}

/// A tile of which C has only some columns.
unsafe fn narrow(kind: Kind, by: Steps, (rows, width): (usize, usize), tile: Tile) {
    let mut whole = [0.0; tile::LARGEST];
    // SAFETY: the tile fits; C has `width` of its columns.
    unsafe {
        (by.tile)(rows, Tile { c: whole.as_mut_ptr(), c_row: kind.columns, begin: Begin::Zero, ..tile });
        for (i, sums) in whole.chunks(kind.columns).take(rows).enumerate() {
            let c = std::slice::from_raw_parts_mut(tile.c.add(i * tile.c_row), width);
            for (j, (c, sum)) in c.iter_mut().zip(sums).enumerate() {
                *c = sum
                    + match tile.begin {
                        Begin::Zero => 0.0,
                        Begin::Kept => *c,
                        Begin::Bias(bias) => *bias.add(j),
                    };
            }
        }
    }
}

/// Memory that packing writes before tiles read it.
fn room(len: usize) -> Vec<f32> {
    fresh(len, |_| ())
}

/// [`products`] for types and processors without tiles.
///
/// # Safety
/// All matrices lie inside their allocations and C overlaps none of them.
pub unsafe fn by_gemm<T: Real>((m, n): (usize, usize), terms: &[Term<T>], (c, row): (*mut T, usize), begin: Begin<T>) {
    if let Begin::Bias(bias) = begin {
        // SAFETY: C has m rows of n numbers, and the bias n.
        (0..m).for_each(|i| unsafe { std::ptr::copy_nonoverlapping(bias, c.add(i * row), n) });
    }
    let mut keep = !matches!(begin, Begin::Zero);
    for Term { k, a, b, factor } in terms {
        let (mut widened_a, mut widened_b) = (Vec::new(), Vec::new());
        // SAFETY: as the caller says.
        let (a, b) = unsafe { (singly(*a, (m, *k), &mut widened_a), singly(*b, (*k, n), &mut widened_b)) };
        let [a_column, a_row, b_column, b_row] = [a.column, a.row, b.column, b.row].map(|n| n as isize);
        // SAFETY: as the caller says.
        unsafe {
            #[rustfmt::skip]
            gemm::gemm(
                m, n, *k, c, 1, row as isize, keep, a.start, a_column, a_row, b.start, b_column, b_row,
                T::one(), T::of(*factor), false, false, false, gemm::Parallelism::None,
            );
        }
        keep = true;
    }
}

/// `x [rows, columns]` in the product's type, in `room` where it is not.
unsafe fn singly<T: Real>(x: Operand<T>, (rows, columns): (usize, usize), room: &mut Vec<T>) -> Matrix<T> {
    // SAFETY: entries of the matrix.
    unsafe {
        *room = match x {
            Operand::Own(x) => return x,
            Operand::BF16(x) => wide(x, rows, columns),
            Operand::F16(x) => wide(x, rows, columns),
        };
    }
    Matrix::rows(room, columns)
}

/// `m [rows, columns]` by rows.
unsafe fn wide<S: Number, T: Real>(m: Matrix<S>, rows: usize, columns: usize) -> Vec<T> {
    // SAFETY: entries of the matrix.
    let number = |i: usize| unsafe { (*m.start.add(i / columns * m.row + i % columns * m.column)).wide() };
    (0..rows * columns).map(|i| T::of(number(i).into())).collect()
}

#[cfg(test)]
mod tests;
