//! Regression at noised ends, and preferences between them: minimisers.

use super::*;

/// Ends that could have led to `x` at `t`, and the noised ends that they are.
fn posterior(x: f64, t: f64, n: usize) -> (Vec<f64>, Noised) {
    let s2 = WIDTH * WIDTH;
    let (mean, sd) = (1.0 + t * s2 / variance(t) * (x - t), (1.0 - t) * WIDTH / variance(t).sqrt());
    at_ends(Rng::new(40).normals(n).into_iter().map(|z| mean + sd * z).collect(), x, t)
}

/// As many ends by parts of equal mass of what could have led to `x` at `t`, of data with this density.
fn parts(density: impl Fn(f64) -> f64, x: f64, t: f64, n: usize) -> (Vec<f64>, Noised) {
    let places: Vec<f64> = (0..=12_000).map(|i| -6.0 + i as f64 * 1e-3).collect();
    let mass = |x1: f64| density(x1) * (-(x - t * x1).powi(2) / (2.0 * (1.0 - t).powi(2))).exp();
    let mut below = vec![0.0];
    below.extend(places.windows(2).scan(0.0, |sum, p| {
        *sum += (mass(p[0]) + mass(p[1])) / 2.0;
        Some(*sum)
    }));
    let (mut k, all) = (0, below[below.len() - 1]);
    let x1 = (0..n).map(|i| {
        let share = (i as f64 + 0.5) / n as f64 * all;
        while below[k + 1] < share {
            k += 1;
        }
        places[k] + 1e-3 * (share - below[k]) / (below[k + 1] - below[k])
    });
    at_ends(x1.collect(), x, t)
}

fn at_ends(x1: Vec<f64>, x: f64, t: f64) -> (Vec<f64>, Noised) {
    let n = x1.len();
    let column = |rows: Vec<f64>| Tensor::from_vec(rows, (n, 1), &Device::Cpu).unwrap();
    let target = column(x1.iter().map(|x1| (x1 - x) / (1.0 - t)).collect());
    let at = Noised { x: column(vec![x; n]), t: Tensor::new(vec![t; n], &Device::Cpu).unwrap(), target };
    (x1, at)
}

fn bell(x: f64, mean: f64, width: f64) -> f64 {
    (-(x - mean).powi(2) / (2.0 * width * width)).exp()
}

fn one_mode(x: f64) -> f64 {
    bell(x, 1.0, WIDTH)
}

fn two_modes(x: f64) -> f64 {
    bell(x, -1.0, 0.3) + bell(x, 1.0, 0.3)
}

/// The loss's derivative by a velocity that all rows share, at `v`.
fn pulled(loss: Regression, at: &Noised, weight: &[f64], [v, old, reference]: [f64; 3], anchor: f64) -> f64 {
    let n = weight.len();
    let shared = Tensor::new(&[v], &Device::Cpu).unwrap().variable().unwrap();
    let rows = |x: f64| Tensor::full(x, (n, 1), &Device::Cpu).unwrap();
    let (policy, old, reference) = (shared.broadcast_as((n, 1)).unwrap(), rows(old), rows(reference));
    let weight = Tensor::new(weight.to_vec(), &Device::Cpu).unwrap();
    let errors =
        Errors { at, policy: &policy, old: Some(&old), reference: Some(&reference), weight: &weight, group: n };
    derivative(&loss.loss(&errors, anchor).unwrap(), &shared)
}

#[test]
fn a_weighted_error_is_least_at_the_weighted_mean_of_what_it_is_held_to() {
    let n = 400_000;
    for (x, t, flow, nft) in [(0.2, 0.3, 1.560495, 1.365854), (0.8, 0.7, 1.431378, 1.411765)] {
        let (x1, at) = posterior(x, t, n);
        let advantage: Vec<f64> = x1.iter().map(|x1| (x1 - 1.0) / WIDTH).collect();
        let clipped: Vec<f64> = advantage.iter().map(|a| a.clamp(-1.0, 1.0)).collect();
        let u: Vec<f64> = x1.iter().map(|x1| (x1 - x) / (1.0 - t)).collect();
        let old = 1.0 + slope(t) * (x - t);
        let product = |a: &[f64]| mean(a.iter().zip(&u).map(|(a, u)| a * u));
        let covariance = |a: &[f64]| product(a) - mean(a.iter().copied()) * mean(u.iter().copied());

        // AdvantageFlow, AWM, RAM: v = (E[A u] + gamma v_old + lambda v_ref) / E[A + gamma + lambda]
        for (gamma, anchor, reference) in [(1.1, 0.0, 0.0), (1.0, 0.5, 0.7), (0.0, 1.2, -0.4)] {
            let v = (product(&clipped) + gamma * old + anchor * reference) / (mean(clipped.clone()) + gamma + anchor);
            let loss = Regression::Quadratic(Gamma::Number(gamma));
            assert!(pulled(loss, &at, &clipped, [v, old, reference], anchor).abs() < 1e-10);
            assert!(pulled(loss, &at, &clipped, [v + 0.1, old, reference], anchor) > 1e-3);
            assert!(anchor != 0.0 || (v - flow).abs() < 0.01, "AdvantageFlow: {v} {flow}");
        }
        // DiffusionNFT without adaptive weights: v - v_old = Cov(2 r - 1, u) / beta, an exact tilt for Gaussians
        let share: Vec<f64> = advantage.iter().map(|a| a.clamp(-5.0, 5.0) / 5.0).collect();
        let own = mean(u.iter().copied());
        let v = own + covariance(&share) / 0.1;
        assert!(pulled(Regression::Quadratic(Gamma::Less(0.1)), &at, &share, [v, own, 0.0], 0.0).abs() < 1e-10);
        assert!(
            (v - own - nft).abs() < 0.02 && (nft - 0.5 * (1.0 - t) / variance(t) / 0.5).abs() < 2e-6,
            "{}",
            v - own
        );
        // First gradients at v_old: AWM -2 Cov, CRD twice that, DGPO half of AWM's
        let first = |loss, weight: &[f64]| pulled(loss, &at, weight, [own, own, own], 0.0);
        let awm = first(Regression::Quadratic(Gamma::Number(1.0)), &clipped);
        let exact = -2.0 * product(&clipped) + 2.0 * mean(clipped.clone()) * own;
        assert!((awm - exact).abs() < 1e-10, "{awm} {exact}");
        let crd = first(Regression::Crd { beta: 1.0 }, &clipped);
        assert!((crd + 4.0 * covariance(&clipped)).abs() < 1e-10, "{crd}");
        let dgpo = first(Regression::Dgpo { beta: 1.0 }, &clipped);
        assert!((dgpo - awm / 2.0).abs() < 1e-10, "{dgpo} {awm}");
        if x == 0.2 {
            assert!((awm + 0.94699).abs() < 0.01 && (crd + 1.89399).abs() < 0.02, "{awm} {crd}");
        }
    }
}

#[test]
fn nft_with_equal_weights_is_the_balanced_quadratic() {
    let (x1, at) = posterior(0.2, 0.3, 7);
    let a: Vec<f64> = x1.iter().map(|x| (x - 1.0).clamp(-1.0, 1.0)).collect();
    for (beta, v) in [(0.1, 0.4), (0.5, -0.3), (1.0, 2.0)] {
        let old = 0.9;
        let err = |f: f64, u: f64| (f - u).powi(2);
        let by_hand = |v: f64| {
            mean(a.iter().zip(numbers(&at.target)).map(|(a, u)| {
                let (r, up, down) = (0.5 + a / 2.0, beta * v + (1.0 - beta) * old, (1.0 + beta) * old - beta * v);
                (r * err(up, u) + (1.0 - r) * err(down, u)) / beta
            }))
        };
        let slope = (by_hand(v + 1e-5) - by_hand(v - 1e-5)) / 2e-5;
        let got = pulled(Regression::Quadratic(Gamma::Less(beta)), &at, &a, [v, old, 0.0], 0.0);
        assert!((got - slope).abs() < 1e-7, "{beta}: {got} {slope}");
    }
    // as published: each error of the data over its own mean size, times 5 / beta
    let one = |a: f64| pulled(Regression::Nft { beta: 1.0 }, &posterior(0.2, 0.3, 1).1, &[a], [0.4, 0.9, 0.0], 0.0);
    let u = numbers(&posterior(0.2, 0.3, 1).1.target)[0];
    // of a good end 5 |x1 - x1_hat|^2 / |x1 - x1_hat|, whose slope counts the upper part alone
    assert!((one(1.0) - 5.0 * 2.0 * 0.7 * (0.4 - u).signum()).abs() < 1e-12, "{} {u}", one(1.0));
}

#[test]
fn a_preference_begins_at_ln_2_and_shares_its_noise() {
    let both = Tensor::new(&[[1.5f64], [0.2], [0.9], [1.1]], &Device::Cpu).unwrap();
    let at = noised(&both, Times::Uniform, 1.0, 2, &stream(2)).unwrap();
    let loss = |rows: &[u32]| {
        let at = Noised {
            target: at.target.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap(),
            ..at.clone()
        };
        pulled(Regression::Pairs { beta: 2.0 }, &at, &[1.0; 4], [0.3, 0.0, 0.3], 0.0)
    };
    // the gradient is beta / 4 of that of e_w - e_l, and a swap turns it round
    let u = numbers(&at.target);
    let expected = mean([0, 2].map(|i| 0.5 * (2.0 * (0.3 - u[i]) - 2.0 * (0.3 - u[i + 1]))));
    assert!((loss(&[0, 1, 2, 3]) - expected).abs() < 1e-12 && (loss(&[1, 0, 3, 2]) + expected).abs() < 1e-12);
    let weight = RowWeight::Advantage(Advantage { scale: Scale::One, clip: Some(1.0) }, 1.0);
    let dpo = Forward::new(uniform(5).unwrap(), weight, Regression::Pairs { beta: 100.0 });
    let first = numbers(&update(&dpo, &Moved::new(0.0), &batch(8, 4, 50)).loss().unwrap())[0];
    assert!((first - std::f64::consts::LN_2).abs() < 1e-15, "{first}");
}

#[test]
fn rewards_weighed_by_their_exponential_give_the_tilt() {
    let n = 200_000;
    let (x1, at) = posterior(0.5, 0.6, n);
    let weights: Vec<f64> = x1.iter().map(|x| x.exp()).collect();
    let tilt = Gaussian { means: [0.0, 1.25], deviations: [1.0, WIDTH] };
    let column = |x: f64| Tensor::new(&[[x]], &Device::Cpu).unwrap();
    let t = Tensor::new(&[0.6f64], &Device::Cpu).unwrap();
    let v = numbers(&tilt.velocity(&column(0.5), &t, &Condition::default()).unwrap())[0];
    let rwr = Regression::Quadratic(Gamma::Number(0.0));
    assert!((pulled(rwr, &at, &weights, [v, 0.0, 0.0], 0.0) / mean(weights)).abs() < 0.03);
    // The share of samples that count, exp(-s^2 / tau^2).
    let method = Forward { ends: Ends::Base, ..Forward::new(uniform(400).unwrap(), RowWeight::Tilt, rwr) };
    let share =
        update(&method, &Moved::new(0.0), &batch(20_000, 1, 60)).measured["effective"].to_scalar::<f64>().unwrap();
    assert!((share - 0.7788).abs() < 0.012, "{share}");
}

/// Where a quadratic loss is least.
fn least(loss: Regression, at: &Noised, weight: &[f64], own: f64) -> f64 {
    let [here, there] = [own, own + 1.0].map(|v| pulled(loss, at, weight, [v, own, own], 0.0));
    own - here / (there - here)
}

#[test]
fn minimisers_of_one_and_two_modes_have_these_digits() {
    let bimodal: fn(f64) -> f64 = two_modes;
    for (law, middle, width, x, t, nft, flow) in [
        (one_mode as fn(f64) -> f64, 1.0, WIDTH, 0.2, 0.3, 1.365854, 1.560495),
        (one_mode, 1.0, WIDTH, 0.8, 0.7, 1.411765, 1.431378),
        (bimodal, 0.0, 1.09f64.sqrt(), 0.2, 0.3, 2.852598, 0.936221),
        (bimodal, 0.0, 1.09f64.sqrt(), 0.8, 0.7, 0.388415, 0.870427),
    ] {
        let (n, advantage) = (400_000, move |x1: f64| (x1 - middle) / width);
        let (x1, at) = parts(law, x, t, n);
        let own = mean(numbers(&at.target));
        let share: Vec<f64> = x1.iter().map(|x1| advantage(*x1).clamp(-5.0, 5.0) / 5.0).collect();
        let got = least(Regression::Quadratic(Gamma::Less(0.1)), &at, &share, own) - own;
        assert!((got - nft).abs() < 1e-5, "NFT {x}, {t}: {got} {nft}");
        let clipped = move |x1: f64| advantage(x1).clamp(-1.0, 1.0);
        let weight: Vec<f64> = x1.iter().map(|x1| clipped(*x1)).collect();
        let got = least(Regression::Quadratic(Gamma::Number(1.1)), &at, &weight, own);
        assert!((got - flow).abs() < 1e-5, "AdvantageFlow {x}, {t}: {got} {flow}");
        // it is the velocity of the law (gamma + A) times the old one
        let new = parts(move |x1| (1.1 + clipped(x1)) * law(x1), x, t, n).1;
        assert!((mean(numbers(&new.target)) - flow).abs() < 1e-5, "{x}, {t}");
        if (middle, x) == (1.0, 0.2) {
            let first = |loss| pulled(loss, &at, &weight, [own; 3], 0.0);
            let (awm, crd) = (first(Regression::Quadratic(Gamma::Number(1.0))), first(Regression::Crd { beta: 1.0 }));
            assert!((awm + 0.94699).abs() < 1e-5 && (crd + 1.89399).abs() < 1e-5, "{awm} {crd}");
        }
    }
}

#[test]
fn ram_holds_a_tilted_gaussian_and_not_two_modes() {
    // v = v_ref + Cov_q(R, u | x_t): the fixed point of v_ref + R (u - v), of ends of its own law q
    let (n, lambda) = (100_000, 1.5);
    let ram = Regression::Quadratic(Gamma::Number(0.0));
    let tilted = |law: fn(f64) -> f64, by: f64| move |x1: f64| law(x1) * (by * x1).exp();
    let target = |law: fn(f64) -> f64, x: f64, t: f64| {
        let reference = mean(numbers(&parts(law, x, t, n).1.target));
        let (x1, at) = parts(tilted(law, lambda), x, t, n);
        let (v, weight) = (mean(numbers(&at.target)), x1.iter().map(|x1| lambda * x1).collect::<Vec<_>>());
        [v, v - pulled(ram, &at, &weight, [v, 0.0, reference], 1.0) / 2.0, reference]
    };
    for (x, t, expected) in [(0.2, 0.3, 1.63415), (-0.5, 0.5, 2.80000)] {
        let [tilt, found, _] = target(one_mode, x, t);
        assert!((tilt - expected).abs() < 1e-5 && (found - expected).abs() < 1e-5, "{tilt} {found} {expected}");
    }
    let [tilt, found, reference] = target(two_modes, 0.2, 0.3);
    assert!((tilt - 1.21392).abs() < 1e-5 && (found - 0.40239).abs() < 2e-5, "{tilt} {found}");
    // small tilts, one after another, each with the covariance of its own law, come to it
    let n = 20_000;
    let steps = (0..200).map(|k| {
        let (x1, at) = parts(tilted(two_modes, lambda * (k as f64 + 0.5) / 200.0), 0.2, 0.3, n);
        let v = mean(numbers(&at.target));
        -pulled(ram, &at, &x1, [v, 0.0, v], 0.0) / 2.0 * lambda / 200.0
    });
    let summed = reference + steps.sum::<f64>();
    assert!((summed - 1.21392).abs() < 5e-5, "{summed}");
}

#[test]
fn a_preference_weighs_like_the_share_that_prefers_it() {
    // Bradley-Terry choices of the reward 2 x: E[w] - E[l] = 2 E[x A], A(x) = E tanh((r - r_b) / 2)
    let (n, beta) = (200_000, 2.0);
    let x1 = parts(one_mode, 0.0, 0.0, 40_000).0;
    let others: Vec<[f64; 2]> = (0..400).map(|i| -2.0 + 0.015 * i as f64).map(|b| [b, one_mode(b)]).collect();
    let all: f64 = others.iter().map(|[_, p]| p).sum();
    let preferred = |a: f64| others.iter().map(|[b, p]| p * (a - b).tanh()).sum::<f64>() / all;
    let advantage: Vec<f64> = x1.iter().map(|a| preferred(*a)).collect();
    let (_, at) = at_ends(x1, 0.0, 0.0);
    let awm = pulled(Regression::Quadratic(Gamma::Number(0.0)), &at, &advantage, [0.0; 3], 0.0);
    assert!((awm + 0.36316).abs() < 1e-5, "{awm}");
    let mut draws = Rng::new(41).normals(2 * n).into_iter().map(|z| 1.0 + WIDTH * z);
    let mut lots = Rng::new(42).normals(2 * n).into_iter();
    let mut ends = Vec::new();
    while let (Some(a), Some(b), Some(p), Some(q)) = (draws.next(), draws.next(), lots.next(), lots.next()) {
        // uniform by the angle of two normal numbers
        let lot = p.atan2(q) / std::f64::consts::TAU + 0.5;
        let first = lot < 1.0 / (1.0 + (2.0 * (b - a)).exp());
        ends.extend(if first { [a, b] } else { [b, a] });
    }
    let ends = Tensor::from_vec(ends, (2 * n, 1), &Device::Cpu).unwrap();
    let pairs = noised(&ends, Times::Uniform, 1.0, 2, &stream(43)).unwrap();
    let dpo = pulled(Regression::Pairs { beta }, &pairs, &vec![1.0; 2 * n], [0.4, 0.0, 0.4], 0.0);
    // a choice's winner less its loser has a deviation of about 0.6
    assert!((dpo + beta / 2.0 * 0.36316).abs() < 4.0 * beta / 2.0 * 0.6 / (n as f64).sqrt(), "{dpo}");
}
