//! Convolutions of stride 1 without patches: in an image with its padding, what one tap of the kernel reads for many pixels in a row is one
//! piece of the image, and tiles of a product read such pieces as lines of their right factor. The pixels that lie between the end of a line
//! and the beginning of the next are made too, and left out.

use super::{Begin, ConvShape};
use crate::kernel::{Matrix, Shared, fresh};
use crate::product::{Kind, Left};
use rayon::prelude::*;
use std::ops::Range;

/// Numbers of results that a thread holds: with the lines that they are made of they stay in the second cache.
const HELD: usize = 1 << 14;

/// Whether the convolution is one of these: a 1 x 1 kernel reads the image as it is; of short lines too much is left out; of many channels
/// the first cache does not hold what a tile reads, unless there are so few results that unrolling patches takes longer than multiplying them.
pub fn fits(z: &ConvShape) -> bool {
    let faster = (64..=640).contains(&z.patch()) || z.patch() > 640 && z.outer <= 16;
    z.stride == 1 && !z.plain() && z.ow >= 12 && faster && z.batch * z.outer > 0
}

/// `out [batch, outer, oh, ow]`.
pub fn convolve(kind: Kind, [x, weight]: [&[f32]; 2], begin: Begin<f32>, z: ConvShape, out: &mut [f32]) {
    // SAFETY: [outer, patch].
    let kernel = unsafe { Left::new(kind, (z.outer, z.patch()), Matrix::rows(weight, z.patch())) };
    let width = z.ow + z.kw - 1; // of a line with its padding
    let most = (HELD / (z.outer * width)).max(kind.columns.div_ceil(width)).min(z.oh);
    let blocks = z.oh.div_ceil(most);
    let step = z.oh.div_ceil(blocks);
    let plane = (step + z.kh - 1) * width;
    let place = |row: usize| row / (z.kh * z.kw) * plane + row / z.kw % z.kh * width + row % z.kw;
    let places: Vec<usize> = (0..z.patch()).map(place).collect();
    let shared = Shared(out.as_mut_ptr());
    let (image, pixels) = (z.inner * z.h * z.w, z.pixels());
    (0..z.batch * blocks).into_par_iter().for_each(|job| {
        let (b, first) = (job / blocks, job % blocks * step);
        let lines = first..(first + step).min(z.oh);
        let n = (lines.len() * width).next_multiple_of(kind.columns);
        let mut padded = vec![0.0; z.inner * plane + n];
        pad(&x[b * image..][..image], lines.clone(), &mut padded[..z.inner * plane], plane, z);
        let products = fresh(z.outer * n, |products| kernel.times_spread(&padded, &places, products));
        for (o, products) in products.chunks(n).enumerate() {
            let at = (b * z.outer + o) * pixels + first * z.ow;
            // SAFETY: every job writes its own lines of its own image.
            let to = unsafe { std::slice::from_raw_parts_mut(shared.at(at), lines.len() * z.ow) };
            for (to, line) in to.chunks_mut(z.ow).zip(products.chunks(width)) {
                let numbers = to.iter_mut().zip(line);
                match begin {
                    Begin::Zero => numbers.for_each(|(to, x)| *to = *x),
                    Begin::Kept => numbers.for_each(|(to, x)| *to += x),
                    Begin::Bias(bias) => numbers.for_each(|(to, x)| *to = x + bias[o]),
                }
            }
        }
    });
}

/// What result lines `lines` read of an image, in planes of this many numbers: lines with their padding, which is zero already.
fn pad(image: &[f32], lines: Range<usize>, planes: &mut [f32], plane: usize, z: ConvShape) {
    let ([above, left], width) = (z.padding, z.ow + z.kw - 1);
    for (image, plane) in image.chunks(z.h * z.w).zip(planes.chunks_mut(plane)) {
        for (line, to) in (lines.start..lines.end + z.kh - 1).zip(plane.chunks_mut(width)) {
            if let Some(y) = line.checked_sub(above).filter(|y| *y < z.h) {
                let there = &mut to[left..];
                let seen = z.w.min(there.len());
                there[..seen].copy_from_slice(&image[y * z.w..][..seen]);
            }
        }
    }
}
