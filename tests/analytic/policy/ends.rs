//! Regression at noised ends, and preferences between them: minimisers.

use super::*;

/// Ends that could have led to `x` at `t`, and the noised ends that they are.
fn posterior(x: f64, t: f64, n: usize) -> (Vec<f64>, Noised) {
    let s2 = WIDTH * WIDTH;
    let (mean, sd) = (1.0 + t * s2 / variance(t) * (x - t), (1.0 - t) * WIDTH / variance(t).sqrt());
    let x1: Vec<f64> = Rng::new(40).normals(n).into_iter().map(|z| mean + sd * z).collect();
    let column = |rows: Vec<f64>| Tensor::from_vec(rows, (n, 1), &Device::Cpu).unwrap();
    let target = column(x1.iter().map(|x1| (x1 - x) / (1.0 - t)).collect());
    let at = Noised { x: column(vec![x; n]), t: Tensor::new(vec![t; n], &Device::Cpu).unwrap(), target };
    (x1, at)
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
