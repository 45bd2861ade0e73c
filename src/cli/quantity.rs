//! Numbers as people read and write them.

use std::time::Duration;

/// `3,875,544,576`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = (0..digits.len().div_ceil(3))
        .rev()
        .map(|i| &digits[digits.len().saturating_sub(3 * i + 3)..digits.len() - 3 * i])
        .collect();
    groups.join(",")
}

/// Bytes in decimal units: `7.75 GB`.
pub fn bytes(n: f64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// Bytes as `8GB`, `500 MB` or `1000000`.
pub fn read_bytes(text: &str) -> Result<usize, String> {
    let units = [("", 1.0), ("k", 1e3), ("m", 1e6), ("g", 1e9), ("t", 1e12)];
    let bytes = read(text.strip_suffix(['b', 'B']).unwrap_or(text), &units).filter(|n| (1.0..1e18).contains(n));
    bytes.map(|n| n as usize).ok_or_else(|| format!("expected a size such as 8GB, got \"{text}\""))
}

/// A time as `90s`, `20 min`, `8h` or, in seconds, `90`.
pub fn read_time(text: &str) -> Result<Duration, String> {
    let units = [("", 1.0), ("s", 1.0), ("m", 60.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0)];
    let seconds = read(text, &units).filter(|n| (1e-3..1e9).contains(n));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("expected a time such as 90s or 8h, got \"{text}\""))
}

/// A number with one of these units, case aside.
fn read(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let number = text.trim_end_matches(|c: char| c.is_alphabetic() || c == ' ');
    let unit = text[number.len()..].trim().to_lowercase();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<f64>().ok().map(|n| n * factor)
}

/// Floating-point operations: `4.92 TFLOP`.
pub fn flops(n: f64) -> String {
    scaled(n, &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"])
}

/// Three digits and a unit, each a thousand times the one before.
fn scaled(n: f64, units: &[&str]) -> String {
    let (mut n, mut unit) = (n, 0);
    while n >= 999.5 && unit + 1 < units.len() {
        (n, unit) = (n / 1e3, unit + 1);
    }
    let digits = match n {
        _ if unit == 0 || n >= 99.95 => 0,
        n if n >= 9.995 => 1,
        _ => 2,
    };
    format!("{n:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_groups_of_three() {
        assert_eq!([0, 12, 999, 1000, 3_875_544_576].map(count), ["0", "12", "999", "1,000", "3,875,544,576"]);
        assert_eq!([0.0, 512.0, 999.6, 7.75e9, 62e9].map(bytes), ["0 B", "512 B", "1.00 kB", "7.75 GB", "62.0 GB"]);
        assert_eq!(
            ["8GB", "1.5 kB", "12", "2T"].map(|text| read_bytes(text).unwrap()),
            [8e9 as usize, 1500, 12, 2e12 as usize]
        );
        assert!(["", "GB", "-1", "8 apples", "1e30"].iter().all(|text| read_bytes(text).is_err()));
        assert_eq!(["90s", "0.5 min", "8H", "2"].map(|text| read_time(text).unwrap().as_secs()), [90, 30, 28800, 2]);
        assert!(["", "h", "-1s", "0", "1 year"].iter().all(|text| read_time(text).is_err()));
        assert_eq!([4.917e12, 622e9, 99.97e9].map(flops), ["4.92 TFLOP", "622 GFLOP", "100 GFLOP"]);
    }
}
