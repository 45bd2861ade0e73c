//! What is known in closed form of the methods at inference time, beside the particles and weights of `inference.rs`; toys are in `inference_toys.rs`.

use crate::inference::run;

#[test]
fn a_share_of_the_objective_is_that_share_of_the_reward_gained() {
    // The last half of the steps, `lambda = 1.7`, data of deviation 0.6: shares of objective and of control for three penalties.
    run(r#"
        let s = [1.0, 0.6];
        let lambda = 1.7;
        let base = gaussian::field(s, [0.0, 0.0]);
        let x0 = tensor([[0.4]]).to(f64());
        let path = rollout(base, x0, (), #{ grid: uniform(1000) });
        let adjoint = lean_adjoint(base, path, path.terminal_gradient(terminal_cost(|x| -lambda * x.sum(1))));
        let last = |masses| masses.extract(500).sum() / masses.sum();
        let end = |flow| rollout(flow, x0, (), #{ grid: uniform(400), solver: heun() }).last.item();
        for known in [[2, 0.6560, 0.5828], [4, 0.6084, 0.5285], [6, 0.5983, 0.5172]] {
            assert_close(last(objective_mass(adjoint, power(known[0]))), known[1], 1e-3);
            assert_close(last(control_mass(adjoint, power(known[0]))), known[2], 1e-3);
            // The optimal control from a time on: what it moves the end by is the reward gained.
            let gained = |from| end(steered(base, |x, t, c, v| {
                let at = t[0].item();
                zeros(x.shape).to(f64()) + if at < from { 0.0 } else { (lambda * gaussian::adjoint(s, at)) ** (1.0 / (known[0] - 1)) }
            })) - end(base);
            assert_close(gained(0.5) / gained(0.0), known[1], 2e-3);
        }"#)
    .unwrap();
}

#[test]
fn guidance_in_few_steps_falls_short_as_it_should() {
    run(r#"
        let s = [1.0, 0.6];
        let lambda = 1.5;
        let base = gaussian::field(s, [0.0, 0.3]);
        let x0 = rng(0).normal([4, 1]).to(f64());
        let shift = |guided, o| (rollout(guided, x0, (), o).last - rollout(base, x0, (), o).last).mean().item();
        let euler_ahead = steered(base, |x, t, c, v| grad(|y| lambda * look_ahead(base, y, t, ()).sum(), x));
        for known in [[3, 0.55226], [5, 0.67801], [10, 0.78270], [50, 0.87532]] {
            assert_close(shift(euler_ahead, #{ grid: uniform(known[0]) }), known[1], 1e-5);
        }
        // By the exact map, for the steps and for the gradient.
        for known in [[3, 1.33146], [5, 1.38276], [10, 1.40583], [50, 1.41340]] {
            let map = |x, from, to| gaussian::flow_map(s, [0.0, 0.3], x, from, to);
            let stepped = velocity_field(|x, t, c| known[0] * (map(x, t[0].item(), t[0].item() + 1.0 / known[0]) - x));
            let guided = steered(stepped, |x, t, c, v| grad(|y| lambda * map(y, t[0].item(), 1.0).sum(), x));
            let o = #{ grid: uniform(known[0]) };
            let start = rollout(stepped, x0, (), o).last;
            assert_close(start, map(x0, 0.0, 1.0), 1e-12);
            assert_close((rollout(guided, x0, (), o).last - start).mean().item(), known[1], 1e-5);
        }
        // The gradient at the prediction alone (FMRG-E): of unit weight, and with the weight (1 - t) t' of its code.
        let at_the_end = |weight| steered(base, |x, t, c, v| {
            let t = t[0].item();
            weight(t) * grad(|y| lambda * y.sum(), data_from_velocity(v, x, t))
        });
        let fine = #{ grid: uniform(400), solver: heun() };
        assert_close(shift(at_the_end(|t| 1.0), fine), 1.42975, 1e-4);
        for known in [[5, 0.36632], [50, 0.25746]] {
            assert_close(shift(at_the_end(|t| (1 - t) * (t + 1.0 / known[0])), #{ grid: uniform(known[0]) }), known[1], 1e-5);
        }"#)
    .unwrap();
}

#[test]
fn guides_of_any_kind_lessen_the_deviation_as_they_should() {
    // Deviations of the log evidence of 16 particles over 20 steps, of 4000 runs of a reference; 400 have an error of 3.5 %. The largest and the
    // sum of small worths are hardly paid before the end.
    run(r#"
        let n = 20;
        let gradient = |x, t, c, v| grad(|y| ahead(y, t, c, field.velocity(y, t, c)).sum(), x);
        let part = |share| |x, t, c, v| share * ahead(x, t, c, v);
        for known in [
            [#{ threshold: 0.0 }, 0.475], [#{ twist: ahead }, 0.413], [#{ twist: ahead, scheme: multinomial() }, 0.415],
            [#{ twist: part(0.1), pay: particles::largest() }, 0.463], [#{ twist: part(0.01), pay: particles::total() }, 0.473],
            [#{ twist: ahead, guide: gradient }, 0.170],
        ] {
            let draws = rng(7);
            let all = [];
            for i in 0..400 {
                all.push(particles::run(field, draws.normal([16, 1]).to(f64()), (), options(n, draws) + known[0]).log_evidence.item());
            }
            assert_close(tensor(all).std().item() / known[1], 1.0, 0.12);
        }"#)
    .unwrap();
}

#[test]
fn a_reward_that_is_no_line_has_its_evidence_by_any_guide() {
    // URGE: the reward -1.5 (x - 1)^2 / 2, t times it as twist, its gradient as guide.
    run(r#"
        let quadratic_of = |m, v| -log(1 + 1.5 * v) / 2 - 1.5 * (m - 1) ** 2 / (2 * (1 + 1.5 * v));
        assert_close(quadratic_of(0.5, 0.49), -0.3836, 1e-4);
        let n = 20;
        let end = gaussian::chain_end(chain(n), 1.0);
        let exact = quadratic_of(end[0], end[1]);
        let value = |x, t| (-1.5 * t * (x - 1).square() / 2).squeeze(1);
        for o in [#{ twist: |x, t, c, v| value(x, t) }, #{}] {
            let draws = rng(11);
            let ratios = [];
            for i in 0..400 {
                let cloud = particles::run(field, draws.normal([8, 1]).to(f64()), (), options(n, draws) + o + #{
                    reward: |x, c| value(x, 1.0), guide: |x, t, c, v| -1.5 * t * (x - 1),
                });
                ratios.push((cloud.log_evidence - exact).exp().item());
            }
            let error = tensor(ratios).std().item() / 20;
            check(error < 0.03, `${error}`);
            assert_close(tensor(ratios).mean().item(), 1.0, 3 * error);
        }"#)
    .unwrap();
}

#[test]
fn stale_paths_are_worth_what_their_shift_leaves() {
    // The effective share of weights is exp(-2 KL) where a flow moves by the same everywhere: 0.994 and 0.907 of paths, 0.999 and 0.991 of the worst step.
    run(r#"
        for known in [[0.05, 0.999, 0.994], [0.2, 0.991, 0.907]] {
            let before = gaussian::field([1.0, 0.7], [0.0, 0.0]);
            let now = gaussian::field([1.0, 0.7], [0.0, known[0]]);
            let o = #{ grid: uniform(20), solver: sde(linear_decay(2)), rng: rng(0) };
            let path = rollout(before, rng(1).normal([20000, 1]).to(f64()), (), o);
            let kl = -girsanov(path, before, now, #{ quadratic: true })[0].item();
            let share = |l| ess(l) / 20000;
            let log_w = girsanov(path, before, now);
            assert_close(exp(-2 * kl), known[2], 3e-3);
            assert_close(share(log_w), exp(-2 * kl), 0.01);
            let steps = girsanov(path, before, now, #{ by_step: true });
            let shares = [];
            for k in 0..20 { shares.push(share(steps[k])); }
            assert_close(shares.min(), known[1], 2e-3);
            // Weighted, the ends are those of the flow as it is now.
            let end = gaussian::chain_end(gaussian::chain([1.0, 0.7], known[0], sde(linear_decay(2)), uniform(20)), 1.0);
            assert_close((log_w.exp() * path.last.squeeze(1)).mean().item(), end[0], 0.02);
        }"#)
    .unwrap();
}

#[test]
fn a_step_of_ddim_with_noise_is_the_posterior_of_ddpm() {
    run(r#"
        for pair in [[0.1, 0.15], [0.4, 0.6], [0.9, 0.95]] {
            let t = pair[0];
            let to = pair[1];
            let d = gddim(1).step(t, to - t);
            let posterior = (1 - to) ** 2 * (1 - ((1 - to) * t / (to * (1 - t))) ** 2);
            assert_close((to - t) * d.w, posterior, 1e-12);
        }"#)
    .unwrap();
}

#[test]
fn the_mean_adjoint_of_an_energy_turns_the_base_into_the_target() {
    // Adjoint Sampling: the base of width 1.3, the energy of N(0.8, 0.25), x = 0.37.
    run(r#"
        let width = 1.3;
        let target = gaussian::field([1.0, 0.5], [0.0, 0.8]);
        let x = tensor([[0.37]]).to(f64());
        for known in [[0.2, 0.557692], [0.5, 0.836], [0.9, 0.594118]] {
            let t = known[0];
            let end = look_ahead(target, x, t, ());      // the mean of the ends of the target's law given x, in which what is aimed at is linear
            assert_close(gaussian::memoryless_target(width, x, t, end, (0.8 - end) / 0.25).item(), known[1], 1e-6);
            assert_close(target.velocity(x, t, ()).item(), known[1], 1e-6);
        }"#)
    .unwrap();
}

#[test]
fn feedback_of_the_mean_control_carries_the_whole_law() {
    // The double integrator from N(0, I) to N((2, -1), [[0.5, 0.2], [0.2, 0.3]]): E[u | x] is linear, of moments of pairs and least control.
    run(r#"
        import "stdlib/transport" as transport;
        let wanted = tensor([[0.5, 0.2], [0.2, 0.3]]).to(f64());
        let all = |a, b| cat([a.reshape([2, 2]), b.reshape([2, 2])], 1);    // of the start and the end
        let two = |rows| tensor(rows).to(f64());
        let joint = cat([all(eye(2).to(f64()), zeros([2, 2]).to(f64())), all(zeros([2, 2]).to(f64()), wanted)], 0);
        let feedback = |t| {
            // x = x0 + y0 t + p t^2 / 2 + q t^3 / 6, u = p + q t, p = 6 (x1 - x0 - y0) - 2 (y1 - y0), q = 6 (y1 - y0) - 12 (x1 - x0 - y0)
            let p = [-6.0, -4.0, 6.0, -2.0];
            let q = [12.0, 6.0, -12.0, 6.0];
            let at = |a, b, start| { let row = []; for i in 0..4 { row.push(a * p[i] + b * q[i] + start[i]); } row };
            let state = two([at(t ** 2 / 2, t ** 3 / 6, [1.0, t, 0.0, 0.0]), at(t, t ** 2 / 2, [0.0, 1.0, 0.0, 0.0])]);
            let control = two([at(1.0, t, [0.0, 0.0, 0.0, 0.0])]);
            let spread = matmul(matmul(state, joint), state.transpose(0, 1));
            let a = spread[0][0].item();
            let b = spread[0][1].item();
            let d = spread[1][1].item();
            let inverse = two([[d, -b], [-b, a]]) / (a * d - b * b);
            let gain = matmul(matmul(matmul(control, joint), state.transpose(0, 1)), inverse);
            let mean = two([[0.0], [0.0], [2.0], [-1.0]]);
            #{ gain: gain.transpose(0, 1), offset: (matmul(control, mean) - matmul(gain, matmul(state, mean))).item() }
        };
        let drift = |x, t| { let f = feedback(t); cat([x.narrow(1, 1, 1), matmul(x, f.gain) + f.offset], 1) };
        // The flow is linear: the images of 0 and of the axes are its offset and its matrix.
        let end = transport::march(drift, two([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), #{ steps: 1000 }).last;
        let map = end.narrow(0, 1, 2) - end.narrow(0, 0, 1);
        assert_close(end.narrow(0, 0, 1), two([[2.0, -1.0]]), 0.01);
        assert_close(matmul(map.transpose(0, 1), map), wanted, 2e-3);"#)
    .unwrap();
}

#[test]
fn a_guide_is_a_change_of_velocity_and_its_weight_is_girsanovs() {
    // The mean's shift h w g is that of the velocity's change w g / (1 + rho), the gain of adjoint matching.
    run(r#"
        for solver in [sde(linear_decay(2)), sde(memoryless()), sde(constant(0.5))] {
            let o = #{ grid: uniform(10), solver: solver };
            let guide = |x, t| -1.5 * t * (x - 1) + x.sin();
            let changed = steered(field, |x, t, c, v| {
                let d = solver.step(t[0].item(), 0.1);
                d.w / (1 + d.rho) * guide(x, t[0].item())
            });
            let x = rng(1).normal([50, 2]).to(f64());
            let path = rollout(changed, x, (), o + #{ rng: rng(3) });
            let cloud = particles::run(field, x, (), o + #{ rng: rng(3), guide: |x, t, c, v| guide(x, t), reward: |x, c| zeros([50]), threshold: 0.0 });
            assert_close(cloud.last, path.last, 1e-6);
            assert_close(cloud.log_weights, girsanov(path, changed, field), 1e-5);
            check(cloud.log_weights.std().item() > 0.1, "no weights");
        }"#)
    .unwrap();
}

#[test]
fn the_worth_of_a_state_is_that_of_the_data_predicted_and_what_is_left_to_chance() {
    // log E[exp(lambda x1) | x] = lambda x1^ + lambda^2 C / 2, C = s^2 (1 - t)^2 / S: the memoryless chain from 0.4 on has this mean and variance.
    run(r#"
        let n = 4000;
        let steps = gaussian::chain([1.0, 0.7], 0.5, sde(memoryless()), uniform(n)).extract((0.4 * n).round().to_int());
        let x = tensor([[0.3]]).to(f64());
        let predicted = |x| look_ahead(field, x, 0.4, ());
        let slope = 1.0;
        for step in steps { slope *= step[0]; }
        let end = gaussian::chain_end(steps, 0.0);
        assert_close(slope, grad(|x| predicted(x).sum(), x).item(), 1e-3);
        assert_close(end[0] + slope * 0.3, predicted(x).item(), 1e-3);
        assert_close(end[1], 0.49 * 0.36 / gaussian::variance([1.0, 0.7], 0.4), 1e-3);"#)
    .unwrap();
}

#[test]
fn candidates_move_each_step_by_the_mean_of_the_chosen_draw() {
    // SVDD with the exact value: of two candidates one by weight; of n the best.
    run(r#"
        import "stdlib/numeric" as numeric;
        let n = 10;
        let w = worth(n);
        let steps = chain(n);
        let by_weight = |a| numeric::integral(|d| exp(-d * d / 2) / sqrt(2 * PI()) * d / sqrt(2.0) * tanh(a * d / sqrt(2.0)), -8.0, 8.0);
        for known in [[2, 1.0, by_weight], [6, 1e4, |a| 1.26721]] {
            let pick = known[2];
            let mean = 0.0;
            for k in 0..n { mean = steps[k][0] * mean + steps[k][1] + sqrt(steps[k][2]) * pick(w[k + 1][0] * sqrt(steps[k][2])); }
            let draws = rng(4);
            let cloud = particles::run(field, draws.normal([2000, 1]).to(f64()), (), options(n, draws) + #{
                candidates: known[0], threshold: 0.0, reward: |x, c| known[1] * 2 * x.squeeze(1),
                twist: |x, t, c, v| { let now = w[(t * n).round().to_int()]; known[1] * (now[0] * x.squeeze(1) + now[1]) },
            });
            assert_close(cloud.last.mean().item(), mean, 4 * cloud.last.std().item() / sqrt(2000.0));
            check(mean > 0.8, "too near the base");
        }"#)
    .unwrap();
}

#[test]
fn under_memoryless_noise_an_error_costs_what_its_signal_to_noise_says() {
    // Half the integral of |error of the data predicted|^2 over snr = t^2 / (1 - t)^2, on every grid: for 0.1 / (1 + snr) it is 0.005, between
    // 0.01 and 100 it is 0.0049010.
    run(r#"
        import "stdlib/numeric" as numeric;
        let divergence = |grid, from, to| {
            let wrong = steered(field, |x, t, c, v| {
                let t = t[0].item();
                let snr = (t / (1 - t)) ** 2;
                full(x.shape, if snr > from && snr < to { 0.1 / (1 + snr) / (1 - t) } else { 0.0 }).to(f64())
            });
            let path = rollout(wrong, zeros([1, 1]).to(f64()), (), #{ grid: grid, solver: sde(memoryless()), rng: rng(0) });
            -girsanov(path, wrong, field, #{ quadratic: true }).item()
        };
        let circle = |n| {      // sin x1 + cos z, as a grid of the linear path
            let times = [];
            for k in 0..n { let a = PI() / 2 * k / n; times.push(sin(a) / (sin(a) + cos(a))); }
            grid(times + [1.0])
        };
        for of in [|n| uniform(n), |n| shifted(n, 3), circle] {
            assert_close(numeric::limit(|n| divergence(of(n), -1.0, infinity()), 100), 0.005, 2e-6);
        }
        // The ends 1/11 and 10/11 are on the grid; a step counts from its own time on.
        assert_close(numeric::limit(|n| divergence(uniform(n), 0.01 - 1e-9, 100 - 1e-6), 110), 0.0049010, 2e-6);"#)
    .unwrap();
}

#[test]
fn weights_that_are_forgotten_take_the_evidence_with_them() {
    // What public code of FK steering weighs where no step's own weights are uneven enough: the last step's pay alone. In the mean that
    // is exp(lambda^2 q / 2), q the last step's variance.
    run(r#"
        let n = 20;
        let before = ();
        let pay = |worth, kept, paid| { before = worth; [worth - paid, ()] };
        let draws = rng(3);
        let cloud = particles::run(field, draws.normal([20000, 1]).to(f64()), (), options(n, draws) + #{ twist: ahead, pay: pay, threshold: 0.0 });
        let kept = (cloud.log_weights - evidence(n)).exp();
        assert_close(kept.mean().item(), 1.0, 4 * kept.std().item() / sqrt(20000.0));
        let left = (cloud.scores - before - evidence(n)).exp();
        let exact = exp(2 * chain(n)[n - 1][2] - evidence(n));
        assert_close(exact, 0.1455, 1e-4);
        assert_close(left.mean().item(), exact, 4 * left.std().item() / sqrt(20000.0));
        check(ess(cloud.scores - before) > 10000, "uneven");"#)
    .unwrap();
}
