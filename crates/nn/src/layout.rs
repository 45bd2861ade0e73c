//! How the tensors of a file become the ones a model asks for: other names, rows of a fused matrix, other shapes.

use std::ops::Range;

/// A stored tensor, or rows of one, under the name a model asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub name: String,
    /// Rows of the stored tensor.
    pub rows: Range<usize>,
    /// Shape of the piece, with the same numbers in the same order.
    pub shape: Vec<usize>,
    /// The two halves of its rows change places.
    pub swapped: bool,
}

impl Piece {
    /// All of a tensor of this shape.
    pub fn whole(name: impl Into<String>, shape: &[usize]) -> Self {
        let rows = 0..shape.first().copied().unwrap_or(1);
        Self { name: name.into(), rows, shape: shape.to_vec(), swapped: false }
    }

    /// The `i`th of `n` equal parts of its rows.
    pub fn part(name: impl Into<String>, shape: &[usize], i: usize, n: usize) -> Self {
        let mut piece = Self::whole(name, shape);
        let len = piece.rows.len() / n;
        piece.rows = i * len..(i + 1) * len;
        if let Some(first) = piece.shape.first_mut() {
            *first = len;
        }
        piece
    }

    pub fn swapped(self) -> Self {
        Self { swapped: true, ..self }
    }

    /// The same numbers in another shape.
    pub fn shaped(self, shape: Vec<usize>) -> Self {
        Self { shape, ..self }
    }
}

/// The pieces a stored tensor `(name, shape)` holds.
pub type Layout = dyn Fn(&str, &[usize]) -> Vec<Piece>;

/// Names as they are.
pub fn same(name: &str, shape: &[usize]) -> Vec<Piece> {
    vec![Piece::whole(name, shape)]
}
