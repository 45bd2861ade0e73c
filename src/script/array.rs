//! Chapter `array`: arrays of numbers.

use super::*;
use amscript_base::bail;

/// Arrays of numbers, and pairs of two arrays; Rhai's own functions of arrays (`map`, `filter`, `sort`, ..) stand beside these.
#[export_module(manifest)]
pub mod array {
    use super::*;

    /// The largest number; integers stay integers.
    ///
    /// ```rhai
    /// [1, 3, 2].max()     //=> 3
    /// [0.5, 2].max()      //=> 2.0
    /// [].max()            //=> error: max: there must be at least one number, got none
    /// ["a"].max()         //=> error: max: item 0: expected a number, got "a"
    /// ```
    #[rhai_fn(name = "max", return_raw)]
    pub fn largest(numbers: Array) -> RhaiResultOf<Dynamic> {
        Ok(extreme("max", &numbers, f64::max)?)
    }

    /// The smallest number; integers stay integers.
    ///
    /// ```rhai
    /// [1, 3, 2].min()              //=> 1
    /// [0.5, -infinity()].min()     //=> -inf
    /// ```
    #[rhai_fn(name = "min", return_raw)]
    pub fn smallest(numbers: Array) -> RhaiResultOf<Dynamic> {
        Ok(extreme("min", &numbers, f64::min)?)
    }

    /// The sum of numbers; integers stay integers.
    ///
    /// ```rhai
    /// [1, 2, 3].sum()     //=> 6
    /// [0.5, 1].sum()      //=> 1.5
    /// [].sum()            //=> 0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn sum(numbers: Array) -> RhaiResultOf<Dynamic> {
        let sum = option::list::<f64>(numbers.clone(), "sum")?.iter().sum();
        Ok(as_given(&numbers, sum))
    }

    /// The mean of numbers.
    ///
    /// ```rhai
    /// [1, 2].mean()   //=> 1.5
    /// [].mean()       //=> error: mean: there must be at least one number, got none
    /// ```
    #[rhai_fn(return_raw)]
    pub fn mean(numbers: Array) -> RhaiResultOf<f64> {
        let numbers = some("mean", &numbers)?;
        Ok(numbers.iter().sum::<f64>() / numbers.len() as f64)
    }

    /// Pairs of the items of two arrays.
    ///
    /// ```rhai
    /// ["a", "b"].zip([1, 2])   //=> [["a", 1], ["b", 2]]
    /// [1, 2].zip([1])          //=> error: zip: the arrays must be of one length, got 2 and 1
    /// ```
    #[rhai_fn(return_raw)]
    pub fn zip(items: Array, others: Array) -> RhaiResultOf<Array> {
        if items.len() != others.len() {
            let message = format!("zip: the arrays must be of one length, got {} and {}", items.len(), others.len());
            return Err(Error::new(Kind::Shape, message).into());
        }
        Ok(items.into_iter().zip(others).map(|(a, b)| Dynamic::from(vec![a, b])).collect())
    }
}

/// An array's numbers, at least one.
fn some(function: &str, numbers: &Array) -> Result<Vec<f64>> {
    match option::list(numbers.clone(), function)? {
        empty if empty.is_empty() => bail!(Value, "{function}: there must be at least one number, got none"),
        numbers => Ok(numbers),
    }
}

/// What `of` leaves of all numbers, taken two by two; something that is not a number stays so.
fn extreme(function: &str, numbers: &Array, of: fn(f64, f64) -> f64) -> Result<Dynamic> {
    let found =
        some(function, numbers)?.into_iter().reduce(|a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { of(a, b) });
    Ok(as_given(numbers, found.unwrap_or(f64::NAN)))
}

/// A number as an integer where all it comes from are integers.
fn as_given(numbers: &Array, number: f64) -> Dynamic {
    match numbers.iter().all(Dynamic::is_int) {
        true => Dynamic::from(number as i64),
        false => Dynamic::from(number),
    }
}
