//! Chapter `random`: seeded streams of random numbers.

use super::*;
use amscript_base::bail;
use amscript_tensor::{DType, Stream, Tensor, array};

crate::script_value!(Stream, "a random stream such as `rng(0)`");

/// The same seed gives the same numbers on every device; drawing moves a stream on.
#[export_module(manifest)]
pub mod random {
    use super::*;

    pub type Rng = Stream;

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_rng(r: &mut Rng) -> String {
        r.to_string()
    }

    /// A stream of random numbers.
    ///
    /// ```rhai
    /// rng(0).normal([2]) == rng(0).normal([2])   //=> true
    /// rng(0).normal([2]) == rng(1).normal([2])   //=> false
    /// rng(-1)                                    //=> error: rng: expected a count (an integer, 0 or more), got -1
    /// ```
    #[rhai_fn(return_raw)]
    pub fn rng(seed: i64) -> RhaiResultOf<Rng> {
        Ok(Stream::new(amscript_tensor::Rng::new(option::convert(seed.into(), "rng")?)))
    }

    /// An independent stream that depends on the seed and the name, not on what was drawn before.
    ///
    /// ```rhai
    /// let r = rng(0);
    /// let before = r.split("noise").normal([2]);
    /// r.normal([10]);
    /// before == r.split("noise").normal([2])     //=> true
    /// before == r.split("prompts").normal([2])   //=> false
    /// ```
    pub fn split(r: Rng, name: &str) -> Rng {
        r.split(name)
    }

    /// A tensor of standard normal numbers.
    ///
    /// ```rhai
    /// let r = rng(0);
    /// r.normal([2, 3]).shape           //=> [2, 3]
    /// r.normal([2]) == r.normal([2])   //=> false
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn normal(context: NativeCallContext, r: Rng, shape: Array) -> RhaiResultOf<Tensor> {
        let shape = option::list::<usize>(shape, "normal")?;
        array::affordable(&shape, "normal")?;
        Ok(r.draw(|r| r.normal(&shape, DType::F32, Session::of(&context).device()))?)
    }

    /// A tensor of numbers between 0 and 1.
    ///
    /// ```rhai
    /// let x = rng(0).uniform([1000]);
    /// x.min().item() >= 0.0 && x.max().item() <= 1.0   //=> true
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn uniform(context: NativeCallContext, r: Rng, shape: Array) -> RhaiResultOf<Tensor> {
        let shape = option::list::<usize>(shape, "uniform")?;
        array::affordable(&shape, "uniform")?;
        Ok(r.draw(|r| r.uniform(&shape, DType::F32, Session::of(&context).device()))?)
    }

    /// A tensor of integers from 0 up to, but not including, `n`.
    ///
    /// ```rhai
    /// rng(0).integers(3, [100]).to(f32()).max()   //=> tensor(2.0)
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn integers(context: NativeCallContext, r: Rng, n: i64, shape: Array) -> RhaiResultOf<Tensor> {
        let shape = option::list::<usize>(shape, "integers")?;
        array::affordable(&shape, "integers")?;
        let below = positive(n, "integers")?;
        Ok(r.draw(|r| r.whole(&shape, below, Session::of(&context).device()))?)
    }

    /// `n` different items of an array, in random order.
    ///
    /// ```rhai
    /// let items = rng(0).choose([1, 2, 3], 3);
    /// items.sort();
    /// items                        //=> [1, 2, 3]
    /// rng(0).choose([1, 2], 3)     //=> error: choose: expected at most 2 items, got 3
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn choose(r: Rng, items: Array, n: i64) -> RhaiResultOf<Array> {
        let count = option::convert::<usize>(n.into(), "choose")?;
        if count > items.len() {
            let error = format!("choose: expected at most {} items, got {count}", items.len());
            return Err(Error::new(Kind::Value, error).into());
        }
        Ok(r.draw(|r| r.distinct(count, items.len())).into_iter().map(|i| items[i].clone()).collect())
    }
}

fn positive(n: i64, function: &str) -> Result<usize> {
    match usize::try_from(n) {
        Ok(n) if n > 0 => Ok(n),
        _ => bail!(Value, "{function}: expected a positive count, got {n}"),
    }
}
