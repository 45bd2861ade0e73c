//! Standard normal numbers of pairs of uniform ones (Box and Muller), by arithmetic alone: the same bits on every machine, whatever its library of
//! mathematics, and in vectors. The polynomials are those of FreeBSD's msun, within a unit in the last place.

/// Pairs that are worked on together.
const LANES: usize = 16;

/// Makes pairs of numbers in `[0, 1)` pairs of normal ones; the length is even.
pub fn box_muller(pairs: &mut [f64]) {
    for block in pairs.chunks_mut(2 * LANES) {
        let (mut first, mut second) = ([0.0; LANES], [0.0; LANES]);
        for (i, pair) in block.chunks_exact(2).enumerate() {
            (first[i], second[i]) = (pair[0], pair[1]);
        }
        for (a, b) in first.iter_mut().zip(&mut second) {
            let radius = (-2.0 * logarithm(1.0 - *a)).sqrt();
            let (sin, cos) = sin_cos(*b);
            (*a, *b) = (radius * cos, radius * sin);
        }
        for (i, pair) in block.chunks_exact_mut(2).enumerate() {
            (pair[0], pair[1]) = (first[i], second[i]);
        }
    }
}

/// `ln x` of `x` in `(0, 1]` that is not denormal: `x = 2^k (1 + f)`, with `1 + f` between `sqrt(1/2)` and `sqrt(2)`.
#[inline(always)]
fn logarithm(x: f64) -> f64 {
    const ROOT: u64 = 0x3fe6_a09e << 32; // of 1/2
    const ODD: [f64; 4] =
        [6.666_666_666_666_735e-1, 2.857_142_874_366_239e-1, 1.818_357_216_161_805e-1, 1.479_819_860_511_658_6e-1];
    const EVEN: [f64; 3] = [3.999_999_999_940_942e-1, 2.222_219_843_214_978_4e-1, 1.531_383_769_920_937_3e-1];
    let bits = x.to_bits() + (1.0f64.to_bits() - ROOT);
    let k = f64::from_bits((bits >> 52) | 2f64.powi(52).to_bits()) - (2f64.powi(52) + 1023.0);
    let f = f64::from_bits((bits & ((1 << 52) - 1)) + ROOT) - 1.0;
    let s = f / (2.0 + f);
    let (z, half) = (s * s, 0.5 * f * f);
    let rest = horner(&EVEN, z * z) * (z * z) + horner(&ODD, z * z) * z;
    s * (half + rest) + k * 1.908_214_929_270_587_7e-10 - half + f + k * 6.931_471_803_691_238e-1
}

/// Sine and cosine of `u` turns, `u` in `[0, 1)`: of the rest from the nearest quarter, which is exact.
#[inline(always)]
fn sin_cos(u: f64) -> (f64, f64) {
    const SIN: [f64; 6] = [
        -1.666_666_666_666_663_2e-1,
        8.333_333_333_322_49e-3,
        -1.984_126_982_985_795e-4,
        2.755_731_370_707_006_8e-6,
        -2.505_076_025_340_686_3e-8,
        1.589_690_995_211_55e-10,
    ];
    const COS: [f64; 6] = [
        4.166_666_666_666_66e-2,
        -1.388_888_888_887_411e-3,
        2.480_158_728_947_673e-5,
        -2.755_731_435_139_066_3e-7,
        2.087_572_321_298_175e-9,
        -1.135_964_755_778_819_5e-11,
    ];
    let quarter = (4.0 * u + 0.5).floor();
    let x = std::f64::consts::TAU * (u - 0.25 * quarter);
    let z = x * x;
    let sin = x + x * z * horner(&SIN, z);
    let half = 0.5 * z;
    let cos = 1.0 - half + ((1.0 - (1.0 - half) - half) + z * z * horner(&COS, z));
    let odd = (quarter == 1.0) | (quarter == 3.0);
    let (a, b) = if odd { (cos, sin) } else { (sin, cos) };
    let below = (quarter == 2.0) | (quarter == 3.0);
    let left = (quarter == 1.0) | (quarter == 2.0);
    (if below { -a } else { a }, if left { -b } else { b })
}

/// `c[0] + c[1] x + ..`.
#[inline(always)]
fn horner<const N: usize>(c: &[f64; N], x: f64) -> f64 {
    c.iter().rev().fold(0.0, |sum, c| sum * x + c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn normal_numbers_are_those_of_the_library_of_mathematics() {
        // The library's are up to 4e-16 of a turn's sine off: 2 pi u is rounded before.
        let uniform = Rng::new(5).uniforms(200_000);
        let mut normal = uniform.clone();
        box_muller(&mut normal);
        let mut singles = 0;
        for (u, found) in uniform.chunks_exact(2).zip(normal.chunks_exact(2)) {
            let (radius, angle) = ((-2.0 * (1.0 - u[0]).ln()).sqrt(), std::f64::consts::TAU * u[1]);
            for (found, expected) in found.iter().zip([radius * angle.cos(), radius * angle.sin()]) {
                assert!((found - expected).abs() < 4e-15, "{u:?}: {found} {expected}");
                singles += usize::from(*found as f32 != expected as f32);
            }
        }
        assert!(singles <= 1, "{singles} differ in f32");
    }

    #[test]
    fn the_ends_of_all_ranges_are_right() {
        let last = 1.0 - f64::EPSILON / 2.0;
        for u in [0.0, f64::EPSILON / 2.0, 0.25, 0.293, 0.5, 0.75, last] {
            let expected = (1.0 - u).ln();
            assert!((logarithm(1.0 - u) - expected).abs() <= 1e-15 * expected.abs(), "{u}");
            for near in [u, (u - 1e-9).max(0.0), (u + 1e-9).min(last), (u + 0.125).min(last)] {
                let ((sin, cos), angle) = (sin_cos(near), std::f64::consts::TAU * near);
                assert!((sin - angle.sin()).abs() < 1e-15 && (cos - angle.cos()).abs() < 1e-15, "{near}: {sin} {cos}");
            }
        }
        assert_eq!(
            [sin_cos(0.25), sin_cos(0.5), sin_cos(0.75)].map(|(s, c)| [s.abs(), c.abs()]),
            [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
        );
    }
}
