//! Seeded random streams on the host: the same numbers on every device, and a resume needs only key and counter.

use super::normal::box_muller;
use super::place::send;
use super::value::room;
use super::{DType, Device, Tensor, interrupt};
use amscript_base::bail;
use amscript_base::error::Result;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex, PoisonError};

/// Numbers drawn at once; even, as normal numbers come in pairs.
const PIECE: usize = 1 << 20;

/// 32-bit words that a number takes.
const WORDS: u128 = 2;

type Numbers = fn(&mut Rng, usize) -> Vec<f64>;

/// A stream of random numbers: a key (from the seed and the names it was split by) and a counter in 32-bit words.
#[derive(Clone, Debug)]
pub struct Rng {
    key: [u8; 32],
    words: u128,
    /// The samples that tensors are drawn for, where they are a part of a batch.
    rows: Option<Rows>,
}

/// Some samples of a batch that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    pub first: usize,
    pub len: usize,
    /// Samples of the batch.
    pub of: usize,
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self { key: Sha256::digest(seed.to_le_bytes()).into(), words: 0, rows: None }
    }

    /// An independent stream; depends on this stream's key and the name, not on how much was drawn.
    pub fn split(&self, name: &str) -> Self {
        let key = Sha256::new().chain_update(self.key).chain_update(name).finalize().into();
        Self { key, words: 0, rows: self.rows }
    }

    /// The same stream for a part of a batch: the first dimension of a drawn tensor counts its samples, which get the numbers that they
    /// have in a draw for the batch. Numbers that are no tensor are the same for all parts. The stream moves on as for the batch.
    pub fn of_rows(&self, rows: Option<Rows>) -> Self {
        Self { rows, ..self.clone() }
    }

    /// Position of the stream in 32-bit words; with the key it is the whole state.
    pub fn counter(&self) -> u128 {
        self.words
    }

    pub fn set_counter(&mut self, words: u128) {
        self.words = words;
    }

    fn draw<T>(&mut self, f: impl FnOnce(&mut ChaCha12Rng) -> T) -> T {
        let mut stream = ChaCha12Rng::from_seed(self.key);
        stream.set_word_pos(self.words);
        let out = f(&mut stream);
        self.words = stream.get_word_pos();
        out
    }

    /// `n` numbers in `[0, 1)`.
    pub fn uniforms(&mut self, n: usize) -> Vec<f64> {
        self.draw(|s| (0..n).map(|_| unit(s)).collect())
    }

    /// `n` standard normal numbers (Box-Muller).
    pub fn normals(&mut self, n: usize) -> Vec<f64> {
        let mut out = self.uniforms(n.next_multiple_of(2));
        box_muller(&mut out);
        out.truncate(n);
        out
    }

    /// `n` integers in `0..below`.
    pub fn integers(&mut self, n: usize, below: usize) -> Vec<usize> {
        self.uniforms(n).into_iter().map(|u| below_of(u, below)).collect()
    }

    /// `n` different indices in `0..below`, in random order (`n <= below`).
    pub fn distinct(&mut self, n: usize, below: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..below).collect();
        for (i, u) in self.uniforms(n.min(below)).into_iter().enumerate() {
            all.swap(i, i + ((u * (below - i) as f64) as usize).min(below - i - 1));
        }
        all.truncate(n);
        all
    }

    /// The numbers of a shape, which come so many `together`; of a part of a batch those of its samples.
    fn numbers(&mut self, shape: &[usize], together: usize, draw: Numbers) -> Result<Vec<f64>> {
        let n: usize = shape.iter().product();
        let Some(rows) = self.rows else { return self.pieces(n, draw) };
        let count = shape.first().copied().unwrap_or_default();
        if rows.len == 0 || count == 0 || !count.is_multiple_of(rows.len) {
            bail!(
                Shape, "random numbers: the first dimension must count the {} samples of the part of the batch, got {shape:?}", rows.len;
                hint: "draw what all samples share from a stream of its own"
            );
        }
        let (each, start) = (n / rows.len, self.words);
        let (before, all) = (each * rows.first, (each * rows.of).next_multiple_of(together));
        self.words = start + WORDS * (before - before % together) as u128;
        let mut values = self.pieces(before % together + n, draw)?;
        self.words = start + WORDS * all as u128;
        Ok(values.split_off(before % together))
    }

    /// So many numbers, drawn in pieces, between which a stop is heard.
    fn pieces(&mut self, n: usize, draw: Numbers) -> Result<Vec<f64>> {
        let mut values = Vec::with_capacity(n);
        while values.len() < n {
            interrupt::check()?;
            values.append(&mut draw(self, PIECE.min(n - values.len())));
        }
        Ok(values)
    }

    pub fn normal(&mut self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        room("random numbers", shape, DType::F64, &Device::Cpu)?;
        let values = self.numbers(shape, 2, Self::normals)?;
        send(&Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?, dtype, device)
    }

    pub fn uniform(&mut self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        room("random numbers", shape, DType::F64, &Device::Cpu)?;
        let values = self.numbers(shape, 1, Self::uniforms)?;
        send(&Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?, dtype, device)
    }
}

impl Rng {
    /// A tensor of integers in `0..below`, the same for all parts of a batch.
    pub fn whole(&mut self, shape: &[usize], below: usize, device: &Device) -> Result<Tensor> {
        room("random numbers", shape, DType::F64, &Device::Cpu)?;
        let drawn = self.pieces(shape.iter().product(), Self::uniforms)?;
        let values: Vec<i64> = drawn.into_iter().map(|u| below_of(u, below) as i64).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(device)
    }
}

/// A number in `[0, 1)` as one of `0..below`.
fn below_of(u: f64, below: usize) -> usize {
    ((u * below as f64) as usize).min(below.saturating_sub(1))
}

/// A random stream that its holders share, as scripts hold it: who draws moves it on for all.
#[derive(Clone, Debug)]
pub struct Stream(Arc<Mutex<Rng>>);

impl Stream {
    pub fn new(rng: Rng) -> Self {
        Self(Arc::new(Mutex::new(rng)))
    }

    /// Draws: `stream.draw(|rng| rng.normals(4))`.
    pub fn draw<T>(&self, f: impl FnOnce(&mut Rng) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Draws tensors of `count` rows, each of which stands for as many samples that follow one another.
    pub fn draw_rows<T>(&self, count: usize, f: impl FnOnce(&mut Rng) -> T) -> T {
        let over = |rows: Rows| {
            let share = (rows.len / count.max(1)).max(1);
            Rows { first: rows.first / share, len: rows.len / share, of: rows.of / share }
        };
        self.draw(|rng| {
            let rows = rng.rows;
            rng.rows = rows.map(over);
            let drawn = f(rng);
            rng.rows = rows;
            drawn
        })
    }

    /// A stream of its own for a part of a batch; see [`Rng::of_rows`].
    pub fn of_rows(&self, rows: Rows) -> Self {
        Self::new(self.draw(|rng| rng.of_rows(Some(rows))))
    }

    /// An independent stream of its own; see [`Rng::split`].
    pub fn split(&self, name: &str) -> Self {
        Self::new(self.draw(|rng| rng.split(name)))
    }
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rng({} numbers drawn)", self.draw(|rng| rng.counter()) / 2)
    }
}

/// 53 random bits as a number in `[0, 1)`.
fn unit(stream: &mut ChaCha12Rng) -> f64 {
    (stream.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_continues_from_its_counter() {
        let mut a = Rng::new(7).split("noise");
        a.normals(5);
        let mut b = Rng::new(7).split("noise");
        b.set_counter(a.counter());
        assert_eq!(a.normals(4), b.normals(4));
        assert_ne!(Rng::new(7).split("noise").normals(4), Rng::new(7).split("other").normals(4));
    }

    #[test]
    fn a_part_of_a_batch_draws_what_its_samples_have_in_the_batch() {
        let fresh = Rng::new(7).split("noise");
        let draw = |rng: &mut Rng, n: usize| {
            let odd = rng.normal(&[n, 3], DType::F64, &Device::Cpu).unwrap().to_vec2::<f64>().unwrap();
            let shared = rng.integers(1, 1000)[0];
            let several = rng.uniform(&[2 * n], DType::F64, &Device::Cpu).unwrap().to_vec1::<f64>().unwrap();
            (odd, shared, several, rng.counter())
        };
        let (odd, shared, several, counter) = draw(&mut fresh.clone(), 5);
        for (first, len) in [(0, 5), (0, 2), (1, 1), (2, 3), (4, 1)] {
            let rows = Some(Rows { first, len, of: 5 });
            let own = draw(&mut fresh.of_rows(rows), len);
            let end = first + len;
            assert_eq!(own, (odd[first..end].to_vec(), shared, several[2 * first..2 * end].to_vec(), counter));
        }
        let pairs = |rows: Rows, count: usize| {
            let stream = Stream::new(fresh.of_rows(Some(rows)));
            let drawn = stream.draw_rows(count, |rng| rng.normal(&[count, 3], DType::F64, &Device::Cpu)).unwrap();
            (drawn, stream.draw(|rng| rng.counter()))
        };
        let all = pairs(Rows { first: 0, len: 8, of: 8 }, 4);
        let last = pairs(Rows { first: 4, len: 4, of: 8 }, 2);
        assert_eq!(crate::array::distance(&all.0.narrow(0, 2, 2).unwrap(), &last.0).unwrap(), 0.0);
        assert_eq!(all.1, last.1);
        let two = fresh.of_rows(Some(Rows { first: 0, len: 2, of: 5 })).normal(&[3], DType::F64, &Device::Cpu);
        assert!(two.unwrap_err().message.contains("must count the 2 samples of the part of the batch, got [3]"));
    }

    #[test]
    fn holders_share_a_stream() {
        let (a, mut rng) = (Stream::new(Rng::new(7)), Rng::new(7));
        let b = a.clone();
        let drawn = [a.draw(|r| r.normals(3)), b.draw(|r| r.normals(3))].concat();
        assert_eq!(drawn, [rng.normals(3), rng.normals(3)].concat());
        assert_eq!(a.split("x").draw(|r| r.uniforms(2)), Rng::new(7).split("x").uniforms(2));
    }

    #[test]
    fn normal_moments() {
        let x = Rng::new(1).normals(200_000);
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.01, "{mean} {variance}");
    }

    #[test]
    fn distinct_indices_are_distinct() {
        let mut x = Rng::new(3).distinct(20, 20);
        x.sort_unstable();
        assert_eq!(x, (0..20).collect::<Vec<_>>());
    }
}
