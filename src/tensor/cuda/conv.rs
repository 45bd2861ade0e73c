//! 2-D convolution as products of patches, unrolled as many at a time as scratch memory allows.

use super::linear::{Part, multiply};
use super::{Arg, File, Grid, Unit, fresh, launch, plain};
use crate::error::Result;
use crate::tensor::grad::custom_vjp;
use candle_core::{DType, Tensor};

/// Numbers of unrolled patches at a time; less than `super::SCRATCH`.
const SCRATCH: usize = if cfg!(test) { 1 << 11 } else { 1 << 27 };

/// Sizes of one convolution: `x [batch, inner, h, w]`, `weight [outer, inner, kh, kw]`, output `oh x ow`.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub inner: usize,
    pub h: usize,
    pub w: usize,
    pub outer: usize,
    pub kh: usize,
    pub kw: usize,
    pub stride: usize,
    pub padding: usize,
    pub oh: usize,
    pub ow: usize,
}

impl Sizes {
    fn patch(&self) -> usize {
        self.inner * self.kh * self.kw
    }

    fn pixels(&self) -> usize {
        self.oh * self.ow
    }

    /// 1 x 1 kernels read the image itself as their patches.
    fn plain(&self) -> bool {
        self.kh * self.kw * self.stride == 1 && self.padding == 0
    }

    fn image(&self) -> usize {
        self.inner * self.h * self.w
    }

    fn numbers(&self) -> [Arg<'static>; 7] {
        [self.inner, self.h, self.w, self.kh, self.kw, self.stride, self.padding].map(Arg::Int)
    }

    /// Images, and of each the output lines, whose patches are unrolled at once.
    fn step(&self) -> (usize, usize) {
        let whole = self.patch() * self.pixels();
        match SCRATCH / whole.max(1) {
            0 => (1, (SCRATCH / (self.patch() * self.ow)).clamp(1, self.oh)),
            images => (images.min(self.batch), self.oh),
        }
    }

    /// Patches of `images` images of `x` and the output lines `first..first + lines`: `[images, patch, lines ow]`.
    fn unroll(&self, x: &Tensor, image: usize, images: usize, first: usize, lines: usize) -> Result<Tensor> {
        let part = x.narrow(0, image, images)?;
        let columns = fresh((images, self.patch(), lines * self.ow), x.dtype(), x.device())?;
        let n = columns.elem_count();
        let ends = [Arg::Int(first), Arg::Int(lines), Arg::Int(self.ow)];
        let tensors = [Arg::Tensor(&part), Arg::Tensor(&columns), Arg::Long(n)];
        let args: Vec<Arg> = tensors.into_iter().chain(self.numbers()).chain(ends).collect();
        launch(x.device(), &Unit::new(File::Planes, x, 1), "unroll", Grid::each(n), &args)?;
        Ok(columns)
    }

    /// The convolution that is the input gradient of this one, where the stride is 1 and padding allows.
    fn turned(&self) -> Option<Self> {
        let square = self.kh == self.kw && self.stride == 1 && self.padding < self.kh;
        square.then(|| Self {
            inner: self.outer,
            outer: self.inner,
            h: self.oh,
            w: self.ow,
            oh: self.h,
            ow: self.w,
            padding: self.kh - 1 - self.padding,
            ..*self
        })
    }
}

/// Cross-correlation with zero padding; weight and bias are of x's type.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, z: Sizes) -> Result<Tensor> {
    let dtype = x.dtype();
    let (input, kernel) = (plain(x, dtype)?, plain(weight, dtype)?);
    let out = forward(&input, &kernel, bias, z)?;
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    let input = weight.track_op().then_some(input);
    custom_vjp(&inputs, out, move |grad, wanted| {
        let grad = plain(grad, dtype)?;
        let mut gradients = vec![None; wanted.len()];
        if wanted[0] {
            gradients[0] = Some(input_gradient(&grad, &kernel, z)?);
        }
        if let Some(input) = input.as_ref().filter(|_| wanted[1]) {
            gradients[1] = Some(weight_gradient(&grad, input, z)?.to_dtype(dtype)?);
        }
        if wanted.get(2) == Some(&true) {
            gradients[2] = Some(grad.to_dtype(DType::F32)?.sum((0, 2, 3))?.to_dtype(dtype)?);
        }
        Ok(gradients)
    })
}

fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, z: Sizes) -> Result<Tensor> {
    let (patch, pixels) = (z.patch(), z.pixels());
    let out = fresh((z.batch, z.outer, z.oh, z.ow), x.dtype(), x.device())?;
    if let Some(bias) = bias {
        let (bias, n) = (plain(bias, x.dtype())?, out.elem_count());
        let args = [Arg::Tensor(&bias), Arg::Tensor(&out), Arg::Long(n), Arg::Int(z.outer), Arg::Long(pixels)];
        launch(x.device(), &Unit::new(File::Planes, x, 1), "lines", Grid::each(n), &args)?;
    }
    let factors = [1.0, if bias.is_some() { 1.0 } else { 0.0 }];
    let (kernel, results) = (Part::rows(weight, patch), Part::rows(&out, pixels).every(z.outer * pixels));
    if z.plain() {
        let patches = Part::rows(x, pixels).every(z.image());
        multiply((z.outer, patch, pixels), kernel, patches, results, z.batch, factors)?;
        return Ok(out);
    }
    let (images, lines) = z.step();
    for image in (0..z.batch).step_by(images) {
        for first in (0..z.oh).step_by(lines) {
            let (count, lines) = (images.min(z.batch - image), lines.min(z.oh - first));
            let columns = z.unroll(x, image, count, first, lines)?;
            let n = lines * z.ow;
            let patches = Part::rows(&columns, n).every(patch * n);
            let results = results.from(image * z.outer * pixels + first * z.ow);
            multiply((z.outer, patch, n), kernel, patches, results, count, factors)?;
        }
    }
    Ok(out)
}

fn input_gradient(grad: &Tensor, weight: &Tensor, z: Sizes) -> Result<Tensor> {
    if let Some(turned) = z.turned() {
        let area = z.kh * z.kw;
        let back = Tensor::from_vec((0..area as u32).rev().collect(), area, grad.device())?;
        let kernel = weight.reshape((z.outer, z.inner, area))?.index_select(&back, 2)?.transpose(0, 1)?.contiguous()?;
        return forward(grad, &kernel, None, turned);
    }
    let (patch, pixels) = (z.patch(), z.pixels());
    let out = fresh((z.batch, z.inner, z.h, z.w), grad.dtype(), grad.device())?;
    let images = z.step().0;
    for image in (0..z.batch).step_by(images) {
        let count = images.min(z.batch - image);
        let columns = fresh((count, patch, pixels), grad.dtype(), grad.device())?;
        let g = Part::rows(grad, pixels).every(z.outer * pixels).from(image * z.outer * pixels);
        let kernel = Part::rows(weight, patch).transposed();
        let results = Part::rows(&columns, pixels).every(patch * pixels);
        multiply((patch, z.outer, pixels), kernel, g, results, count, [1.0, 0.0])?;
        let part = out.narrow(0, image, count)?;
        let n = part.elem_count();
        let tensors = [Arg::Tensor(&columns), Arg::Tensor(&part), Arg::Long(n)];
        let args: Vec<Arg> = tensors.into_iter().chain(z.numbers()).chain([Arg::Int(z.oh), Arg::Int(z.ow)]).collect();
        launch(grad.device(), &Unit::new(File::Planes, grad, 1), "roll", Grid::each(n), &args)?;
    }
    Ok(out)
}

/// In f32.
fn weight_gradient(grad: &Tensor, x: &Tensor, z: Sizes) -> Result<Tensor> {
    let (patch, pixels) = (z.patch(), z.pixels());
    let sum = Tensor::zeros((z.outer, z.inner, z.kh, z.kw), DType::F32, grad.device())?;
    for image in 0..z.batch {
        let columns = if z.plain() { x.narrow(0, image, 1)? } else { z.unroll(x, image, 1, 0, z.oh)? };
        let g = Part::rows(grad, pixels).from(image * z.outer * pixels);
        let patches = Part::rows(&columns, pixels).transposed();
        multiply((z.outer, pixels, patch), g, patches, Part::rows(&sum, patch), 1, [1.0, 1.0])?;
    }
    Ok(sum)
}
