//! 3 x 3 convolutions of stride 1 by Winograd's F(2 x 2, 3 x 3), as in Lavin and Gray (arXiv:1509.09308): tiles of 2 x 2 results take 16
//! multiplications per channel in place of 36. Forward, and input gradient, which is such a convolution too.

use super::ConvShape;
use crate::kernel::{Matrix, Shared, fresh};
use crate::product::{Kind, Left};
use rayon::prelude::*;
use std::ops::Range;

/// Numbers of transformed tiles that a thread holds: what stays in the second cache.
const HELD: usize = 1 << 18;

/// Whether the convolution is one that tiles make faster: with few channels moving numbers takes longer than multiplying them, with few
/// pixels transforming kernels does.
pub fn fits(z: &ConvShape) -> bool {
    let (few, many) = (z.inner.min(z.outer), z.inner.max(z.outer));
    let enough = few >= 48 && many <= Left::DEPTH && z.batch * z.pixels() >= 512;
    (z.kh, z.kw, z.stride) == (3, 3, 1) && enough && z.batch * z.pixels() * few > 1 << 17
}

/// Numbers of transformed kernels, as they are made and as they are packed; a thread's tiles are few.
pub fn scratch(z: &ConvShape) -> usize {
    32 * z.inner * z.outer
}

/// `out [batch, outer, oh, ow]`, a bias for each channel included.
pub fn convolve(kind: Kind, [x, weight]: [&[f32]; 2], bias: Option<&[f32]>, z: ConvShape, out: &mut [f32]) {
    let kernels = kernels(kind, weight, z);
    let (lines, columns) = (z.oh.div_ceil(2), z.ow.div_ceil(2));
    let step = (HELD / (16 * (z.inner + z.outer) * columns)).max(kind.columns.div_ceil(columns)).min(lines);
    let (blocks, image) = (lines.div_ceil(step), z.inner * z.h * z.w);
    let shared = Shared(out.as_mut_ptr());
    (0..z.batch * blocks).into_par_iter().for_each(|job| {
        let (b, first) = (job / blocks, job % blocks * step);
        let lines = first..(first + step).min(lines);
        let tiles = (lines.len() * columns).next_multiple_of(kind.columns);
        let seen = fresh(16 * z.inner * tiles, |seen: &mut [f32]| {
            let (mut lines_of_tiles, width, there) = (Lines::new(z), kind.columns, lines.len() * columns);
            for (c, plane) in x[b * image..][..image].chunks(z.h * z.w).enumerate() {
                // Panels of as many tiles as a product takes at once: [point, panel, channel, tile].
                let place =
                    |point: usize, t: usize| (point * tiles + t / width * width) * z.inner + c * width + t % width;
                if there < tiles {
                    (0..16).for_each(|point| seen[place(point, there)..][..tiles - there].fill(0.0));
                }
                for (i, line) in lines.clone().enumerate() {
                    let at = i * columns;
                    lines_of_tiles.read(plane, line, z);
                    let mut first = 0;
                    while first < columns {
                        let run = first..columns.min(first + width - (at + first) % width);
                        lines_of_tiles.write(run.clone(), seen, |point| place(point, at + first));
                        first = run.end;
                    }
                }
            }
        });
        let products = fresh(16 * z.outer * tiles, |products: &mut [f32]| {
            let each = products.chunks_mut(z.outer * tiles).zip(seen.chunks(z.inner * tiles)).zip(&kernels);
            each.for_each(|((product, seen), kernel)| kernel.times(seen, product));
        });
        let mut sums = vec![0.0; 4 * columns];
        for o in 0..z.outer {
            let bias = bias.map_or(0.0, |bias| bias[o]);
            for (i, line) in lines.clone().enumerate() {
                let points: [&[f32]; 16] =
                    std::array::from_fn(|point| &products[(point * z.outer + o) * tiles + i * columns..][..columns]);
                for (row, y) in (2 * line..z.oh.min(2 * line + 2)).enumerate() {
                    // SAFETY: every job writes its own lines of its own image.
                    let to = unsafe {
                        std::slice::from_raw_parts_mut(shared.at(((b * z.outer + o) * z.oh + y) * z.ow), z.ow)
                    };
                    results(points, row, bias, &mut sums, to);
                }
            }
        }
    });
}

/// `G g G^T` of each kernel g, as the left factors of the sixteen products.
fn kernels(kind: Kind, weight: &[f32], z: ConvShape) -> Vec<Left> {
    let outer = |[a, b, c]: [f32; 3]| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
    const LINE: usize = 16; // kernels whose numbers fill a line of the cache
    let count = weight.len() / 9;
    let points = fresh(16 * count, |points: &mut [f32]| {
        let shared = Shared(points.as_mut_ptr());
        weight.par_chunks(9 * LINE).with_min_len(64).enumerate().for_each(|(at, kernels)| {
            let mut numbers = [[0.0; LINE]; 16];
            for (n, g) in kernels.chunks_exact(9).enumerate() {
                let columns: [[f32; 4]; 3] = std::array::from_fn(|j| outer([g[j], g[3 + j], g[6 + j]]));
                for i in 0..4 {
                    let row = outer(columns.map(|column| column[i]));
                    row.into_iter().enumerate().for_each(|(j, number)| numbers[4 * i + j][n] = number);
                }
            }
            for (point, numbers) in numbers.iter().enumerate() {
                // SAFETY: these kernels have their own numbers at each of the sixteen points.
                let to =
                    unsafe { std::slice::from_raw_parts_mut(shared.at(point * count + at * LINE), kernels.len() / 9) };
                to.copy_from_slice(&numbers[..to.len()]);
            }
        });
    });
    // SAFETY: each is [outer, inner].
    let left = |point: &[f32]| unsafe { Left::new(kind, (z.outer, z.inner), Matrix::rows(point, z.inner)) };
    points.par_chunks(count).map(left).collect()
}

/// One line of tiles: the four lines of the padded image, mixed down the columns, in even and odd places.
struct Lines {
    mixed: Vec<f32>,
    even: [Vec<f32>; 4],
    odd: [Vec<f32>; 4],
    zeros: Vec<f32>,
}

impl Lines {
    fn new(z: ConvShape) -> Self {
        let half = z.ow.div_ceil(2) + 1;
        let lines = || std::array::from_fn(|_| vec![0.0; half]);
        Self {
            mixed: vec![0.0; (2 * half).max(z.padding[1] + z.w)],
            even: lines(),
            odd: lines(),
            zeros: vec![0.0; z.w],
        }
    }

    /// `B^T d` for the tiles d of this line.
    fn read(&mut self, plane: &[f32], line: usize, z: ConvShape) {
        let [above, left] = z.padding;
        let row = |i: usize| match (2 * line + i).checked_sub(above).filter(|y| *y < z.h) {
            Some(y) => &plane[y * z.w..][..z.w],
            None => &self.zeros,
        };
        for (i, (p, sign, q)) in [(0, -1.0, 2), (1, 1.0, 2), (2, -1.0, 1), (1, -1.0, 3)].into_iter().enumerate() {
            let mixed = self.mixed[left..].iter_mut().zip(row(p).iter().zip(row(q)));
            mixed.for_each(|(m, (p, q))| *m = p + sign * q);
            let pairs = self.mixed.chunks_exact(2).zip(self.even[i].iter_mut().zip(&mut self.odd[i]));
            pairs.for_each(|(pair, (even, odd))| (*even, *odd) = (pair[0], pair[1]));
        }
    }

    /// `(B^T d) B` of the tiles `run`, to the place of each of the sixteen points.
    fn write(&self, run: Range<usize>, to: &mut [f32], place: impl Fn(usize) -> usize) {
        for (i, (even, odd)) in self.even.iter().zip(&self.odd).enumerate() {
            let [a, b] = [even, odd].map(|x| &x[run.clone()]);
            let [c, d] = [even, odd].map(|x| &x[run.start + 1..=run.end]);
            for (j, (p, sign, q)) in [(a, -1.0, c), (b, 1.0, c), (c, -1.0, b), (b, -1.0, d)].into_iter().enumerate() {
                let to = &mut to[place(4 * i + j)..][..run.len()];
                to.iter_mut().zip(p.iter().zip(q)).for_each(|(to, (p, q))| *to = p + sign * q);
            }
        }
    }
}

/// Line `row`, of two, of `A^T m A` of a line of tiles, with a bias.
fn results(points: [&[f32]; 16], row: usize, bias: f32, sums: &mut [f32], to: &mut [f32]) {
    let columns = points[0].len();
    for (k, sums) in sums.chunks_mut(columns).enumerate() {
        let [a, b, c, d] = std::array::from_fn(|i| points[4 * i + k]);
        let (first, sign, last) = if row == 0 { (b, 1.0, a) } else { (b, -1.0, d) };
        let numbers = first.iter().zip(c).zip(last);
        sums.iter_mut().zip(numbers).for_each(|(s, ((x, y), z))| *s = x + sign * (y + z));
    }
    let [a, b, c, d] = std::array::from_fn(|k| &sums[k * columns..][..columns]);
    let mut numbers = a.iter().zip(b).zip(c.iter().zip(d));
    let pair = |((a, b), (c, d)): ((&f32, &f32), (&f32, &f32))| [a + b + c + bias, b - c - d + bias];
    let (pairs, rest) = to.split_at_mut(to.len() / 2 * 2);
    pairs.chunks_exact_mut(2).zip(numbers.clone()).for_each(|(to, numbers)| to.copy_from_slice(&pair(numbers)));
    if let (Some(to), Some(numbers)) = (rest.first_mut(), numbers.next_back()) {
        *to = pair(numbers)[0];
    }
}
