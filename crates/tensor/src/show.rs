//! How a tensor prints: its values when there are few, otherwise shape, place and statistics.

use super::array::MOST_RANK;
use super::{DType, Device, Tensor};
use amscript_base::error::Result;

/// `tensor([1.0, 2.0])` for at most eight numbers, else `tensor[4, 16] f32 cpu mean 0.1 std 1.0 min -2.0 max 2.0`.
pub fn show(x: &Tensor) -> String {
    match (x.elem_count(), values(x)) {
        (1..=8, Ok(values)) if x.rank() <= MOST_RANK => format!("tensor({})", nested(&values, x.dims(), x.dtype())),
        (1.., Ok(values)) if x.dtype() != DType::U8 => format!("{} {}", brief(x), statistics(&values)),
        _ => brief(x),
    }
}

/// `tensor[4, 16] f32 cpu`.
pub fn brief(x: &Tensor) -> String {
    format!("tensor{:?} {} {}", x.dims(), x.dtype().as_str(), super::place::name(x.device()))
}

/// Six significant digits, always with a point, so that examples hold on every device.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "NaN".into() } else { format!("{}inf", if value < 0.0 { "-" } else { "" }) };
    }
    let rounded: f64 = format!("{value:.5e}").parse().unwrap_or(value);
    let size = rounded.abs();
    if size != 0.0 && !(1e-4..1e9).contains(&size) { format!("{rounded:e}") } else { format!("{rounded:?}") }
}

/// All values in row-major order.
pub fn values(x: &Tensor) -> Result<Vec<f64>> {
    super::check::read(&x.to_device(&Device::Cpu)?)
}

fn nested(values: &[f64], dims: &[usize], dtype: DType) -> String {
    let Some((&n, rest)) = dims.split_first() else {
        return if dtype.is_int() { format!("{}", values[0] as i64) } else { number(values[0]) };
    };
    let rows: Vec<_> = values.chunks(values.len() / n).map(|row| nested(row, rest, dtype)).collect();
    format!("[{}]", rows.join(", "))
}

fn statistics(values: &[f64]) -> String {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    let (min, max) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
    let bad = values.iter().filter(|v| !v.is_finite()).count();
    let warning = if bad > 0 { format!(" {bad} not finite") } else { String::new() };
    format!("mean {} std {} min {} max {}{warning}", number(mean), number(deviation), number(min), number(max))
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
        assert_eq!(show(&wide), "tensor[10] f32 cpu mean 4.5 std 2.87228 min 0.0 max 9.0");
        assert_eq!(show(&Tensor::zeros((0, 3), DType::F32, &Device::Cpu)?), "tensor[0, 3] f32 cpu");
        Ok(())
    }

    #[test]
    fn numbers_keep_six_digits() {
        let shown: Vec<_> = [1.0, 0.1f32 as f64, 1e9, 123456789.0, f64::NAN, -f64::INFINITY].map(number).into();
        assert_eq!(shown, ["1.0", "0.1", "1e9", "123457000.0", "NaN", "-inf"]);
    }
}
