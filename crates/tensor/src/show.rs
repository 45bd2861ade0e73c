//! How a tensor prints: its values when there are few, in rows when there are some, otherwise shape, place and statistics.

use super::array::MOST_RANK;
use super::{DType, Device, Tensor};
use amscript_base::error::Result;

/// Numbers that stand in one row, and those of a vector or matrix that stand in several.
const ROW: usize = 8;
const ROWS: usize = 64;

/// `tensor([1.0, 2.0])` for a few numbers, else `tensor[4, 32] f32 cpu mean 0.1 std 1.0 min -2.0 max 2.0`.
pub fn show(x: &Tensor) -> String {
    match (x.elem_count(), values(x)) {
        (1..=ROW, Ok(values)) if x.rank() <= MOST_RANK => format!("tensor({})", nested(&values, x.dims(), x.dtype())),
        (1..=ROWS, Ok(values)) if x.rank() <= 2 => format!("tensor({})", rows(&values, x.dims(), x.dtype())),
        (1.., Ok(values)) if x.dtype() != DType::U8 => format!("{} {}", brief(x), statistics(&values, x.dtype())),
        _ => brief(x),
    }
}

/// `tensor[4, 16] f32 cpu`.
pub fn brief(x: &Tensor) -> String {
    format!("tensor{:?} {} {}", x.dims(), x.dtype().as_str(), super::place::name(x.device()))
}

/// Whole numbers below have all their digits in an f64 and in an f32.
const WHOLE: f64 = 1e15;
const WHOLE_F32: f64 = 16_777_216.0;

/// A whole number with all its digits, others with six, always with a point, so that examples hold on every device.
pub fn number(value: f64) -> String {
    digits(value, WHOLE)
}

/// `whole` is the size from which whole numbers are rounded too.
fn digits(value: f64, whole: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "NaN".into() } else { format!("{}inf", if value < 0.0 { "-" } else { "" }) };
    }
    if value.fract() == 0.0 && value.abs() < whole {
        return format!("{value:?}");
    }
    let rounded: f64 = format!("{value:.5e}").parse().unwrap_or(value);
    if (1e-4..1e6).contains(&rounded.abs()) { format!("{rounded:?}") } else { format!("{rounded:e}") }
}

/// A number of a tensor.
fn entry(value: f64, dtype: DType) -> String {
    match dtype {
        DType::F64 => number(value),
        dtype if dtype.is_int() => format!("{}", value as i64),
        _ => digits(value, WHOLE_F32),
    }
}

/// All values in row-major order.
pub fn values(x: &Tensor) -> Result<Vec<f64>> {
    super::check::read(&x.to_device(&Device::Cpu)?)
}

fn nested(values: &[f64], dims: &[usize], dtype: DType) -> String {
    let Some((&n, rest)) = dims.split_first() else {
        return entry(values[0], dtype);
    };
    let rows: Vec<_> = values.chunks(values.len() / n).map(|row| nested(row, rest, dtype)).collect();
    format!("[{}]", rows.join(", "))
}

/// Numbers below each other, as a script writes them: a matrix by its rows, a vector by as many as a row takes.
fn rows(values: &[f64], dims: &[usize], dtype: DType) -> String {
    let shown: Vec<String> = values.iter().map(|v| entry(*v, dtype)).collect();
    let width = shown.iter().map(String::len).max().unwrap_or(0);
    let per_row = if let [_, columns] = dims { *columns } else { ROW };
    let line = |row: &[String]| row.iter().map(|v| format!("{v:>width$}")).collect::<Vec<_>>().join(", ");
    let lines: Vec<String> = shown.chunks(per_row).map(line).collect();
    match dims.len() {
        2 => format!("[[{}]]", lines.join("],\n        [")),
        _ => format!("[{}]", lines.join(",\n        ")),
    }
}

fn statistics(values: &[f64], dtype: DType) -> String {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    let (min, max) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
    let bad = values.iter().filter(|v| !v.is_finite()).count();
    let warning = if bad > 0 { format!(" {bad} not finite") } else { String::new() };
    let whole = if dtype == DType::F64 { WHOLE } else { WHOLE_F32 };
    let [mean, deviation, min, max] = [mean, deviation, min, max].map(|v| digits(v, whole));
    format!("mean {mean} std {deviation} min {min} max {max}{warning}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_tensors_show_values_and_large_ones_statistics() -> Result<()> {
        let x = Tensor::new(&[[1f32, 2.5], [-0.125, 1e-7]], &Device::Cpu)?;
        assert_eq!(show(&x), "tensor([[1.0, 2.5], [-0.125, 1e-7]])");
        assert_eq!(show(&Tensor::new(3u32, &Device::Cpu)?), "tensor(3)");
        let wide = Tensor::arange(0f32, 10.0, &Device::Cpu)?;
        assert_eq!(show(&wide), "tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,\n        8.0, 9.0])");
        let square = Tensor::arange(8u32, 17, &Device::Cpu)?.reshape((3, 3))?;
        assert_eq!(show(&square), "tensor([[ 8,  9, 10],\n        [11, 12, 13],\n        [14, 15, 16]])");
        let long = Tensor::arange(0f32, 101.0, &Device::Cpu)?;
        assert_eq!(show(&long), "tensor[101] f32 cpu mean 50.0 std 29.1548 min 0.0 max 100.0");
        assert_eq!(show(&Tensor::zeros((0, 3), DType::F32, &Device::Cpu)?), "tensor[0, 3] f32 cpu");
        Ok(())
    }

    #[test]
    fn numbers_keep_six_digits_and_whole_ones_all() {
        let shown: Vec<_> = [1.0, 0.1f32 as f64, 0.0, f64::NAN, -f64::INFINITY].map(number).into();
        assert_eq!(shown, ["1.0", "0.1", "0.0", "NaN", "-inf"]);
        let shown: Vec<_> = [123456789.0, -1e9, 1234567.5, 123456.7, 3e20, 1e-7].map(number).into();
        assert_eq!(shown, ["123456789.0", "-1000000000.0", "1.23457e6", "123457.0", "3e20", "1e-7"]);
        assert_eq!(entry(3.3e10f32 as f64, DType::F32), "3.3e10");
    }
}
