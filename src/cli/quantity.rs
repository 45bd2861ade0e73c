//! Numbers as people read them.

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
    let number = text.trim_end_matches(|c: char| c.is_alphabetic() || c == ' ');
    let unit = match text[number.len()..].trim().to_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "tb" | "t" => 1e12,
        _ => return Err(format!("expected a size such as 8GB, got \"{text}\"")),
    };
    match number.parse::<f64>().map(|n| n * unit) {
        Ok(n) if (1.0..1e18).contains(&n) => Ok(n as usize),
        _ => Err(format!("expected a size such as 8GB, got \"{text}\"")),
    }
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
        assert_eq!([4.917e12, 622e9, 99.97e9].map(flops), ["4.92 TFLOP", "622 GFLOP", "100 GFLOP"]);
    }
}
