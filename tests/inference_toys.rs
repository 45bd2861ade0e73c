//! Toys of the methods at inference time whose figures are known: filters, agents, frames, sequences, charts of noise.

use crate::inference::run;

#[test]
fn a_filter_of_flows_has_kalmans_evidence_and_guidance_steadies_it() {
    // Deviations of the log evidence of 32 particles, of 4000 runs of a reference.
    run(r#"
        let s = [1.0, 0.6];
        let seen = [1.2, 0.4, -0.3, 0.9, -0.8, -0.5];
        let variance = gaussian::chain_end(gaussian::chain(s, 0.0, sde(linear_decay(2)), uniform(20)), 1.0)[1];
        let exact = gaussian::filtered(seen, 0.9, variance, 0.16);
        assert_close(variance, 0.345942, 1e-6);
        assert_close(tensor(exact), tensor([-8.267487, -0.471042, 0.117407]), 1e-6);
        assert_close(gaussian::filtered(seen, 0.9, 0.36, 0.16)[0], -8.254575, 1e-6);
        let model = velocity_field(|x, t, c| c["mean"] + gaussian::slope(s, t.unsqueeze(1)) * (x - t.unsqueeze(1) * c["mean"]));
        let runs = 400;
        for known in [[0.0, 0.637], [0.5, 0.364], [1.0, 0.266]] {
            let draws = rng(2);
            let x = zeros([runs * 32, 1]).to(f64());
            let evidence = zeros([runs]).to(f64());
            let last = ();
            for y in seen {
                let cloud = particles::run(model, draws.normal(x.shape).to(f64()), condition(#{ mean: 0.9 * x }), #{
                    grid: uniform(20), solver: sde(linear_decay(2)), rng: draws, groups: runs, threshold: 0.0,
                    reward: |x, c| -(y - x).square().squeeze(1) / 0.32 - log(2 * PI() * 0.16) / 2,
                    guide: |x, t, c, v| {
                        let gain = t * 0.36 / gaussian::variance(s, t);
                        known[0] * gain * (y - data_from_velocity(v, x, t)) / (0.16 + 0.36 * (1 - t) ** 2 / gaussian::variance(s, t))
                    },
                });
                evidence += cloud.log_evidence;
                last = (cloud.log_weights.reshape([runs, 32]).softmax(1) * cloud.last.reshape([runs, 32])).sum(1);
                x = cloud.last[[resample(cloud.log_weights, draws, #{ groups: runs })]];
            }
            let ratios = (evidence - exact[0]).exp();
            assert_close(ratios.mean().item(), 1.0, 3.5 * ratios.std().item() / sqrt(1.0 * runs));
            assert_close(evidence.std().item() / known[1], 1.0, 0.14);
            // By evidence the last state's mean has no bias.
            let off = ratios * (last - exact[1]);
            assert_close(off.mean().item(), 0.0, 3.5 * off.std().item() / sqrt(1.0 * runs));
        }"#)
    .unwrap();
}

#[test]
fn agents_that_see_each_other_come_to_the_joint_tilt() {
    // CMAD between N(0, 1) and N(1, 0.25), cost 2 (Y - 2)^2 of their mean Y; alone, each tilts its own law by the other's mean.
    run(r#"
        let f = |rows| tensor(rows).to(f64());
        let cost = |mean, covariance| 2 * ((mean.mean().item() - 2) ** 2 + covariance.sum().item() / 4);
        let both = gaussian::tilted(f([0.0, 1.0]), f([[1.0, 0.0], [0.0, 0.25]]), ones([2, 2]).to(f64()), f([4.0, 4.0]));
        assert_close(both.mean, f([1.33333, 1.33333]), 1e-5);
        assert_close(both.covariance, f([[0.55556, -0.11111], [-0.11111, 0.22222]]), 1e-5);
        assert_close(cost(both.mean, both.covariance), 1.16667, 1e-5);
        let alone = [#{ mean: f([0.0]) }, #{ mean: f([1.0]) }];
        for round in 0..60 {
            alone[0] = gaussian::tilted(f([0.0]), f([[1.0]]), f([[1.0]]), 4 - alone[1].mean);
            alone[1] = gaussian::tilted(f([1.0]), f([[0.25]]), f([[1.0]]), 4 - alone[0].mean);
        }
        let means = cat([alone[0].mean, alone[1].mean], 0);
        assert_close(means, both.mean, 1e-9);
        assert_close(cost(means, f([[alone[0].covariance.item(), 0.0], [0.0, alone[1].covariance.item()]])), 1.23889, 1e-5);
        // The flow to the joint tilt ends there: a map of 0 and of the axes.
        let ends = rollout(gaussian::joint(both.mean, both.covariance), f([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), (), #{ grid: uniform(200), solver: heun() }).last;
        let map = ends.narrow(0, 1, 2) - ends[0];
        assert_close(ends[0], both.mean, 1e-4);
        assert_close(matmul(map.transpose(0, 1), map), both.covariance, 1e-4);"#)
    .unwrap();
}

#[test]
fn frames_in_steady_motion_have_their_evidence() {
    // Neighbours correlated by 0.6, reward -sum (x_(f+1) - x_f - 0.5)^2 / 2, scale 2.
    run(r#"
        let tilt = |frames, covariance| {
            let one = eye(frames).to(f64());
            let d = one.narrow(0, 1, frames - 1) - one.narrow(0, 0, frames - 1);
            let found = gaussian::tilted(zeros([frames]).to(f64()), covariance, 2 * matmul(d.transpose(0, 1), d), d.sum(0));
            let reward = |mean, covariance| -((matmul(d, covariance) * d).sum() + (matmul(d, mean.unsqueeze(1)) - 0.5).square().sum()).item() / 2;
            #{
                evidence: found.log_evidence - (frames - 1) * 0.25, reward: reward(found.mean, found.covariance),
                base: reward(0 * found.mean, covariance), drift: (found.mean[frames - 1] - found.mean[0]).item(),
            }
        };
        let near = |frames| ((arange(frames).unsqueeze(1) - arange(frames)).abs().to(f64()) * log(0.6)).exp();
        // Of two frames only the difference counts, of variance 0.8.
        assert_close(tilt(2, near(2)).evidence, -log(1 + 2 * 0.8) / 2 - 0.25 / (1 + 2 * 0.8), 1e-9);
        let eight = tilt(8, near(8));
        assert_close(tensor([eight.evidence, eight.reward, eight.base, eight.drift]), tensor([-4.39871, -1.41114, -3.675, 1.2297]), 1e-5);
        // Particles of all frames as one state, in a chain of few steps without noise: a linear map, whose law is exact.
        let flow = gaussian::joint(zeros([8]).to(f64()), near(8));
        let map = rollout(flow, eye(8).to(f64()), (), #{ grid: uniform(20) }).last;
        let exact = tilt(8, matmul(map.transpose(0, 1), map)).evidence;
        let motion = |x| -(x.narrow(1, 1, 7) - x.narrow(1, 0, 7) - 0.5).square().sum(1);
        let draws = rng(6);
        let cloud = particles::run(flow, draws.normal([16000, 8]).to(f64()), (), #{
            grid: uniform(20), solver: euler(), rng: draws, groups: 1000, reward: |x, c| motion(x), twist: |x, t, c, v| motion(data_from_velocity(v, x, t)),
        });
        let ratios = (cloud.log_evidence - exact).exp();
        let error = ratios.std().item() / sqrt(1000.0);
        check(error < 0.04, `${error}`);
        assert_close(ratios.mean().item(), 1.0, 3.5 * error);"#)
    .unwrap();
}

#[test]
fn the_target_of_tilt_matching_has_the_next_velocity_as_its_mean() {
    // Two modes, the reward sin 2x + x / 2, at t = 0.45 with a share 0.3 of it, and 0.5 more; means over 4001 ends.
    run(r#"
        import "stdlib/alignment" as alignment;
        import "stdlib/mixture" as mixture;
        let ends = arange(4001).to(f64()).unsqueeze(1) * 0.004 - 8;
        let law = 0.6 / 0.4 * (-(ends - 1).square() / 0.32).exp() + 0.4 / 0.3 * (-(ends + 1.5).square() / 0.18).exp();
        let r = (2 * ends).sin() + 0.5 * ends;
        let t = 0.45;
        let share = |x, a| ((law + 1e-300).log() + a * r - (x - t * ends).square() / (2 * (1 - t) ** 2)).softmax(0);
        let mean = |w, f| (w * f).sum(0).unsqueeze(0);
        for known in [[-1.0, -0.019257], [0.1, 1.270492], [0.8, 0.420551]] {
            let w = share(known[0], 0.3);
            let move = (ends - known[0]) / (1 - t);
            let before = mean(w, move);
            let v = before;
            for i in 0..200 { v = (v + mean(w, alignment::tilt_target(before, v, move, (0.5 * (r - mean(w, r))).squeeze(1)))) / 2; }
            assert_close(v.item(), known[1], 1e-6);
        }
        // Variances at x = 0.1, for a share of 0.1 more: of the path's own move, 2.34, and of this target.
        let w = share(0.1, 0.3);
        let more = share(0.1, 0.4);
        let move = (ends - 0.1) / (1 - t);
        let variance = |w, f| (mean(w, f.square()) - mean(w, f).square()).item();
        let target = alignment::tilt_target(mean(w, move), mean(more, move), move, (0.1 * (r - mean(w, r))).squeeze(1));
        assert_close(tensor([variance(more, move), variance(w, target)]), tensor([2.34, 0.0455]), 5e-3);

        // The velocity's derivative in the tilt is Cov(x1 - x0, r | x); of a linear reward, by Tweedie, (1 - t) / t times the gradient of the data predicted.
        let modes = mixture::ring(3, 1.5, 0.5);
        let tilted = |a| velocity_field(|x, t, c| mixture::velocity(mixture::tilt(modes, [1.0, 0.0], a), x, t));
        for x in [[0.3, -0.2], [-1.0, 0.6]] {
            let x = tensor([x]);
            let slope = (tilted(0.52).velocity(x, t, ()) - tilted(0.48).velocity(x, t, ())) / 0.04;
            let covariance = grad(|x| look_ahead(tilted(0.5), x, t, ()).narrow(1, 0, 1).sum(), x) * ((1 - t) / t);
            assert_close(slope, covariance, 1e-3);
            check(covariance.abs().max().item() > 0.1, "no covariance");
        }"#)
    .unwrap();
}

#[test]
fn noise_between_seeds_is_normal_and_its_even_chart_even() {
    run(r#"
        import "stdlib/search" as search;
        // Latents of any weights.
        let z = search::surrogate(rng(0).uniform([3, 4]), rng(1).normal([5, 100000]));
        for i in 0..3 {
            assert_close(z[i].mean().item(), 0.0, 0.013);
            assert_close(z[i].square().mean().item(), 1.0, 0.018);
        }
        // Even weights on the part of the sphere in five dimensions: E w = 3/8, E w^2 = 1/5, E w^4 = 3/35, E w_i w_j = 2 / (5 pi).
        let n = 20000;
        let w = search::surrogate(search::even(rng(2).uniform([n, 4])), eye(5));
        for known in [[1, 0.375], [2, 0.2], [4, 3.0 / 35]] {
            let power = w ** known[0];
            assert_close(power.mean(0), full([5], known[1]), 4 * power.std().item() / sqrt(1.0 * n));
        }
        for i in 0..4 { assert_close((w.narrow(1, i, 1) * w.narrow(1, i + 1, 1)).mean().item(), 2 / (5 * PI()), 0.004); }
        // A linear reward is best, |(Z c)_+|, at the weights of its positive parts: no point is better, many come near, and a search does.
        let direction = rng(1).normal([64, 1]);
        let direction = direction / direction.norm();
        for seed in 0..4 {
            let seeds = rng(seed).normal([5, 64]);
            let gains = matmul(seeds, direction);
            let best = gains.relu().norm().item();
            let score = |u| matmul(search::surrogate(search::even(u), seeds), direction).squeeze(1);
            let all = score(rng(3).uniform([n, 4]));
            assert_close(all.mean().item(), 0.375 * gains.sum().item(), 4 * all.std().item() / sqrt(1.0 * n));
            check(all.max().item() <= best + 1e-5 && all.max().item() > 0.95 * best, `${all.max()} of ${best}`);
            let found = search::evolve(4, score, #{ rng: rng(2) });
            check(found.score <= best + 1e-5 && found.score > 0.97 * best, `${found.score} of ${best}`);
        }"#)
    .unwrap();
}

#[test]
fn what_a_search_gains_at_first() {
    run(r#"
        import "stdlib/search" as search;
        // One round among n neighbours, whatever the pivot: c g + sqrt(1 - c^2) E max of n, times the length that is left beside g.
        let z = rng(1).normal([1, 512]);
        let g = z[0][0].item();
        let left = sqrt((z.square().sum().item() - g * g) / 511);
        for known in [[4, 0.95, 1.02938], [8, 0.8, 1.42360]] {
            let scores = search::neighbours(z, 3000 * known[0], known[1], rng(known[0])).narrow(1, 0, 1).squeeze(1);
            let best = scores[[particles::best(#{ scores: scores, groups: 3000 })]];
            assert_close(best.mean().item(), known[1] * g + sqrt(1 - known[1] ** 2) * left * known[2], 4 * best.std().item() / sqrt(3000.0));
        }
        // As many fresh draws as a search of 8 and of 32 rounds of 4 asks for, and 64.
        let still = velocity_field(|x, t, c| zeros(x.shape));
        for known in [[33, 2.082], [64, 2.34373], [129, 2.597]] {
            let scores = search::best_of(still, rng(known[0]).normal([1500 * known[0], 1]), (), |x, c| x.squeeze(1), #{ n: known[0], grid: uniform(1) }).scores;
            assert_close(scores.mean().item(), known[1], 4 * scores.std().item() / sqrt(1500.0));
        }"#)
    .unwrap();
}

#[test]
fn sequences_that_open_together_do_not_see_each_other() {
    // 27 sequences; the law of CDM's tests.
    run(r#"
        import "stdlib/discrete" as discrete;
        let value = |x| x.sum(1) + 1.5 * ((x.narrow(1, 0, 1) - x.narrow(1, 2, 1)).abs() < 0.5).squeeze(1).to(x.dtype);
        let w = discrete::world(3, 3, 1.5 * (1.7 * arange(27).to(f64()) + 0.3).sin(), value);
        let tilt = discrete::world(3, 3, w.law.log() + w.scores, value);
        assert_close(tensor([(w.law * w.scores).sum().item(), (tilt.law * w.scores).sum().item()]), tensor([3.52143, 6.55191]), 1e-5);
        assert_close(w.value[63].item(), 5.256545, 1e-6);
        // All at once: the product of the places' own laws. In many steps the distance is as one over their number.
        let product = (discrete::one_hot(w.clean, 3).to(f64()) * w.denoiser[63]).sum([1, 2]).exp();
        assert_close(discrete::chain(w, w.denoiser, 1), product, 1e-12);
        let distance = |steps| (discrete::chain(w, w.denoiser, steps) - w.law).abs().sum().item() / 2;
        assert_close(distance(256) / distance(64), 0.25, 0.01);
        check(distance(1) > 10 * distance(64), `${distance(1)}`);
        // The tilted denoiser: p(v | y) exp(V(y + v) - V(y)) in every masked state and place.
        for j in 0..64 {
            for i in 0..3 {
                if w.noisy[j][i].item() < 2.5 { continue; }
                let after = [0, 1, 2].map(|v| w.value[j - (3 - v) * 4 ** (2 - i)].item());
                assert_close(tilt.denoiser[j][i].exp(), w.denoiser[j][i].exp() * (tensor(after).to(f64()) - w.value[j]).exp(), 1e-6);
            }
        }
        // Contrast is at rest at the value and any constant, and pushes towards it elsewhere.
        let masked = discrete::masked(w.noisy, 3).to(f64()).sum(1);
        for t in [0.2, 0.5] {
            let time = masked * log(1 - t) + (3 - masked) * log(t);
            let seen = |law| time + matmul(w.fits, law.unsqueeze(1)).squeeze(1).log();
            let push = |twist| grad(|twist| discrete::contrast(twist, seen(w.law), twist, seen(tilt.law)), twist);
            assert_close(push(w.value + 2.0), zeros([64]).to(f64()), 1e-12);
            check((push(0.5 * w.value) * w.value).sum().item() < -0.1 && (push(2 * w.value) * w.value).sum().item() > 0.1, "no push");
        }"#)
    .unwrap();
}
