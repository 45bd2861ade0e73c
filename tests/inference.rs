//! Alignment at inference time against closed forms: particles, weights of paths, guidance, search, masked diffusion; and the recipes.

use crate::command;
use amscript::Result;
use amscript::script::{Host, Request, Session};
use std::process::Command;

/// The flow from N(0, 1) to N(0.5, 0.49); its chain of `n` steps under noise `2 (1 - t)`, as `[factor, offset, variance]` of each; and what a
/// particle is worth there before each step, exactly, for the reward `2 x`: `[g, c]` of `g x + c`.
const BASE: &str = r#"
    import "stdlib/gaussian" as gaussian;
    import "stdlib/particles" as particles;
    let field = gaussian::field([1.0, 0.7], [0.0, 0.5]);
    let chain = |n| gaussian::chain([1.0, 0.7], 0.5, sde(linear_decay(2)), uniform(n));
    let worth = |n| {
        let steps = chain(n);
        let found = [[2.0, 0.0]];
        for i in 0..n {
            let step = steps[n - 1 - i];
            let next = found[0];
            found.insert(0, [step[0] * next[0], next[1] + next[0] * step[1] + next[0] ** 2 * step[2] / 2]);
        }
        found
    };
    let evidence = |n| { let first = worth(n)[0]; first[1] + first[0] ** 2 / 2 };
    let reward = |x, c| 2 * x.squeeze(1);
    let ahead = |x, t, c, v| reward(data_from_velocity(v, x, t), c);
    fn check(ok, what) { if !ok { throw what; } }
    fn same(a, b) { if a != b { throw `expected ${b}, got ${a}`; } }
    let options = |n, draws| #{ grid: uniform(n), solver: sde(linear_decay(2)), rng: draws, reward: reward };
"#;

/// Runs a script that checks its own numbers.
pub fn run(text: &str) -> Result<()> {
    let host = Host::new(Session::new(Request::default(), Box::new(|_| ())));
    host.run("test", &format!("{BASE}{text}")).map(|_| ())
}

/// The message of a script's error, with its hint.
fn refused(text: &str) -> String {
    let error = run(text).unwrap_err();
    format!("{} {}", error.message, error.hint.unwrap_or_default())
}

#[test]
fn the_evidence_is_unbiased_whatever_is_paid_or_guides() {
    run(r#"
        let n = 10;
        assert_close(evidence(20), 1.937581, 1e-6);
        let gradient = |x, t, c, v| grad(|y| ahead(y, t, c, field.velocity(y, t, c)).sum(), x);
        let noise = rng(9);
        let heat = |t| min(1.0, 1.1 ** (t * n) - 1);        // DAS
        let cases = #{
            difference: #{ twist: ahead }, largest: #{ twist: ahead, pay: particles::largest(), at: [3, 6] },
            total: #{ twist: ahead, pay: particles::total(), at: [5] }, guided: #{ twist: ahead, guide: gradient },
            random: #{ twist: |x, t, c, v| 0.3 * noise.normal([x.shape[0]]) }, candidates: #{ twist: ahead, candidates: 3, threshold: 0.0 },
            tempered: #{
                twist: |x, t, c, v| heat(t) * ahead(x, t, c, v), guide: |x, t, c, v| heat(t + 1.0 / n) * gradient(x, t, c, v), scheme: ssp(),
            },
            guide_alone: #{ guide: |x, t, c, v| 0.5 * gradient(x, t, c, v) }, always: #{ twist: ahead, threshold: 1.0, scheme: ssp() },
        };
        for name in cases.keys() {
            let draws = rng(5);
            let ratios = [];
            for i in 0..400 {
                let cloud = particles::run(field, draws.normal([8, 1]).to(f64()), (), options(n, draws) + cases[name]);
                ratios.push((cloud.log_evidence - evidence(n)).exp().item());
            }
            let ratios = tensor(ratios);
            let error = ratios.std().item() / 20;
            assert_close(ratios.mean().item(), 1.0, 3 * error);
            check(error < 0.06, name);
        }"#)
    .unwrap();
}

#[test]
fn exact_twists_leave_no_variance() {
    run(r#"
        let n = 20;
        let w = worth(n);
        let k_of = |t| (t * n).round().to_int();
        let all = [];
        for k in 0..n { all.push(k); }
        for m in [1, 4, 16] {
            let found = [];
            for i in 0..20 {
                let draws = rng(i);
                let x = draws.normal([m, 1]).to(f64()) + w[0][0];      // the start is twisted too
                let cloud = particles::run(field, x, (), options(n, draws) + #{
                    at: all, twist: |x, t, c, v| w[k_of(t)][0] * x.squeeze(1) + w[k_of(t)][1],
                    guide: |x, t, c, v| zeros(x.shape).to(f64()) + w[k_of(t) + 1][0],
                    log_weights: (w[0][0] ** 2 / 2 - w[0][0] * x).squeeze(1),
                });
                found.push(cloud.log_evidence.item());
                assert_close(cloud.ess[-1], 1.0 * m, 1e-9);
            }
            assert_close(found.max() - found.min(), 0.0, 1e-12);
            assert_close(found[0], evidence(n), 1e-12);
        }"#)
    .unwrap();
}

#[test]
fn particles_without_potentials_are_a_rollout_and_groups_stay_apart() {
    run(r#"
        let x = rng(1).normal([6, 2]);
        let o = #{ grid: uniform(8), solver: sde(linear_decay(2)), rng: rng(3) };
        let free = particles::run(field, x, (), o + #{ reward: |x, c| zeros([6]) });
        assert_close(free.last, rollout(field, x, (), o + #{ rng: rng(3) }).last, 1e-5);
        same(free.ancestors, [0, 1, 2, 3, 4, 5]);
        same([free.log_evidence.item(), free.ess[-1]], [0.0, 6.0]);

        // Importance sampling where nothing is drawn anew.
        let weighed = particles::run(field, x, (), o + #{ rng: rng(3), reward: |x, c| 3 * x.sum(1), twist: |x, t, c, v| x.sum(1), threshold: 0.0 });
        assert_close(weighed.last, free.last, 1e-6);
        assert_close(weighed.log_weights, (3 * weighed.last.sum(1)).to(f64()), 1e-5);

        // Each group has its own law: data about 0 and about 40, in the condition.
        let about = velocity_field(|x, t, c| c["mean"] + gaussian::slope([1.0, 0.7], t.unsqueeze(1)) * (x - t.unsqueeze(1) * c["mean"]));
        let means = cat([zeros([8, 1]), full([8, 1], 40.0)], 0);
        let cloud = particles::run(about, rng(2).normal([16, 1]), condition(#{ mean: means }), o + #{
            groups: 2, threshold: 1.0, reward: |x, c| 4 * x.squeeze(1), twist: |x, t, c, v| 4 * data_from_velocity(v, x, t).squeeze(1),
        });
        check(cloud.ancestors.extract(0, 8).max() < 8 && cloud.ancestors.extract(8).min() > 7, "groups mix");
        check(cloud.ancestors.extract(0, 8) != [0, 1, 2, 3, 4, 5, 6, 7], "none was drawn anew");
        same(cloud.condition["mean"], means);
        let evidence = cloud.log_evidence.to_array();
        check(evidence[0] < 20 && evidence[1] > 140, `${evidence}`);
        same(cloud.forwards, 16 * 8);"#)
    .unwrap();
}

#[test]
fn girsanov_makes_paths_of_one_flow_those_of_another() {
    run(r#"
        let n = 40;
        let moved = gaussian::field([1.0, 0.7], [0.0, 0.8]);
        let o = #{ grid: uniform(n), solver: sde(linear_decay(2)), rng: rng(0) };
        let path = rollout(moved, rng(1).normal([40000, 1]).to(f64()), (), o);
        same(girsanov(path, moved, moved).abs().max().item(), 0.0);
        let log_w = girsanov(path, moved, field);
        assert_close(log_w, -girsanov(path, field, moved), 1e-12);
        assert_close(log_w, girsanov(path, moved, field, #{ by_step: true }).sum(0), 1e-12);
        let w = log_w.exp();
        let x = path.last.squeeze(1);
        // Mean and mean square at the end of the base's chain.
        let end = gaussian::chain_end(chain(n), 1.0);
        let mean = end[0];
        let variance = end[1];
        assert_close(mean, 0.5, 1e-3);
        assert_close(w.mean().item(), 1.0, 0.01);
        assert_close((w * x).mean().item(), mean, 0.015);
        assert_close((w * x.square()).mean().item(), variance + mean ** 2, 0.02);
        // The divergence of paths in closed form: the shift does not depend on the state.
        let closed = 0.0;
        for k in 0..n {
            let d = linear_decay(2).step((1.0 * k) / n, 1.0 / n);
            closed += ((1 + d.rho) * 0.3 * (1 - k * gaussian::slope([1.0, 0.7], (1.0 * k) / n) / n)) ** 2 / (2 * n * d.w);
        }
        assert_close(closed, 0.1076, 1e-4);
        assert_close(-girsanov(path, moved, field, #{ quadratic: true }), full([40000], closed).to(f64()), 1e-6);
        assert_close(-log_w.mean().item(), closed, 0.01);"#)
    .unwrap();
}

#[test]
fn a_steered_flow_keeps_what_is_around_it() {
    run(r#"
        let base = flow("tiny/flux2");
        let c = base.encode("a small red ring on cream");
        let x = base.noise(1, rng(0));
        let v = base.velocity(x, 0.5, c);
        let plain = steered(base, |x, t, c, v| zeros(x.shape));
        same(plain.velocity(x, 0.5, c), v);
        same(plain.decode(x), base.decode(x));
        same(plain.encode("a ring").text, ["a ring"]);
        let twice = steered(steered(base, |x, t, c, v| v), |x, t, c, v| -0.5 * v);
        assert_close(twice.velocity(x, 0.5, c), v, 1e-5);
        // Adapters and guidance, before or after.
        let policy = steered(base.lora(#{ rank: 2 }), |x, t, c, v| 0.25 * v);
        check(policy.params().len > 0, "the adapters are gone");
        assert_close(plain.lora(#{ rank: 2 }).velocity(x, 0.5, c), v, 1e-6);
        assert_close(guided(policy, 2).velocity(x, 0.5, c), 1.25 * guided(base, 2).velocity(x, 0.5, c), 1e-5);
        assert_close(policy.strength(0.5).velocity(x, 0.5, c), 1.25 * v, 1e-5);
        let update = adjoint_matching(policy, plain, x, c, terminal_cost(|images| images.sum([1, 2, 3])), #{ grid: uniform(2) });
        check(update.loss.item() > 0, "no control");
        // A network beside the flow is trained.
        let w = param(tensor([0.0]));
        let field = steered(velocity_field(|x, t, c| -x), |x, t, c, v| w + zeros(x.shape));
        let loss = adjoint_matching(field, velocity_field(|x, t, c| -x), ones([2, 1]), (), terminal_cost(|x| x.sum(1)), #{ grid: uniform(4) }).loss;
        check(gradients(loss, [w])[0].item() != 0.0, "no gradient");"#)
    .unwrap();
}

#[test]
fn guidance_by_the_flow_map_is_the_optimal_control() {
    run(r#"
        let s = 0.6;
        let lambda = 1.5;
        let base = gaussian::field([1.0, s], [0.0, 0.3]);
        let x0 = rng(0).normal([8, 1]).to(f64());
        let end = |flow| rollout(flow, x0, (), #{ grid: uniform(400), solver: heun() }).last;
        let shift = |look| {
            let guided = steered(base, |x, t, c, v| grad(|y| lambda * look(y, t[0].item()).sum(), x));
            (end(guided) - end(base)).mean().item()
        };
        let exact = |x, t| gaussian::flow_map([1.0, s], [0.0, 0.3], x, t, 1.0);
        assert_close(shift(exact), 1.41372, 1e-5);
        assert_close(shift(exact), lambda * gaussian::shift([1.0, s]), 1e-5);
        assert_close(shift(|x, t| look_ahead(base, x, t, ())), 0.9, 1e-5);"#)
    .unwrap();
}

#[test]
fn search_climbs_as_far_as_it_should() {
    run(r#"
        import "stdlib/search" as search;
        // Noise put back keeps the marginal law, here of data N(0, 0.64).
        let x1 = 0.8 * rng(1).normal([100000, 1]);
        let x = linear().interpolate(rng(2).normal([100000, 1]), x1, 0.7);
        let back = particles::renoise(x, 0.7, 0.4, rng(3));
        assert_close(back.square().mean().item(), 0.4624, 0.01);
        assert_close((back * x1).mean().item(), 0.256, 0.01);

        // The best of n normal numbers.
        let still = velocity_field(|x, t, c| zeros(x.shape));
        let value = |x, c| x.squeeze(1);
        for known in [[2, 0.56419], [4, 1.02938], [8, 1.42360], [16, 1.76599]] {
            let z = rng(known[0]).normal([8000 * known[0], 1]);
            let found = search::best_of(still, z, (), value, #{ n: known[0], grid: uniform(1) });
            assert_close(found.scores.mean().item(), known[1], 0.04);
        }
        // Neighbours, after 1, 8 and 32 rounds of 4: slower at first than as many fresh draws (1.16, 2.08, 2.60), then further.
        let climbed = [[], [], []];
        for i in 0..200 {
            let found = search::zero_order(rng(i).normal([1, 64]), |z| z.narrow(1, 0, 1).squeeze(1), #{ rounds: 32, rng: rng(i + 1000) });
            for (round, j) in [1, 8, 32] { climbed[j].push(found.history[round]); }
        }
        for (known, j) in [0.353, 2.231, 5.171] { assert_close(climbed[j].mean(), known, 0.2); }
        // Between seeds the optimum of a linear reward is known.
        let seeds = rng(0).normal([5, 64]);
        let direction = rng(1).normal([64, 1]);
        let direction = direction / direction.norm();
        let best = matmul(seeds, direction).relu().norm().item();
        let found = search::evolve(4, |u| matmul(search::surrogate(u, seeds), direction).squeeze(1), #{ rng: rng(2) });
        check(found.score <= best + 1e-5 && found.score > 0.97 * best, `${found.score} of ${best}`);
        // A path that is searched goes back and forth.
        let levels = search::over_paths(field, rng(4).normal([8, 1]), (), value, #{ keep: 2, at: [10, 15], back: 4 });
        same(levels.forwards, 8 * (20 + 2 * 5));
        check(levels.scores.max().item() > 0.5, "nothing found");
        // One that goes on alone fills its group too.
        let one = search::over_paths(field, rng(4).normal([8, 1]), (), value, #{ keep: 1, at: [10], back: 4, groups: 2 });
        same([one.last.shape, one.forwards], [[8, 1], 8 * (20 + 5)]);"#)
    .unwrap();
}

#[test]
fn masked_chains_are_exact() {
    run(r#"
        import "stdlib/discrete" as discrete;
        let value = |x| x.sum(1) + 1.5 * ((x.narrow(1, 0, 1) - x.narrow(1, 2, 1)).abs() < 0.5).squeeze(1).to(x.dtype);
        let w = discrete::world(3, 3, 1.5 * (1.7 * arange(27).to(f64()) + 0.3).sin(), value);
        assert_close(w.value[63].exp().item(), 191.817547, 1e-4);
        assert_close(tensor([w.value[15].item(), w.value[54].item()]), tensor([3.039140, 6.047734]), 1e-5);      // (0, m, m) and (m, 1, 2)
        for known in [[1, 148.790710], [2, 171.167093], [4, 181.708061], [16, 189.330627], [64, 191.198345]] {
            assert_close((discrete::chain(w, w.denoiser, known[0]) * w.scores.exp()).sum().item(), known[1], 1e-4);
        }
        // Sampled, the chain has that law.
        let model = |y| discrete::rows(w.denoiser.reshape([64, 9]), discrete::code(y, 4)).reshape([y.shape[0], 3, 3]);
        let y = discrete::ancestral(|y| model(y).to(f32()), 20000, 3, #{ tokens: 3, steps: 4, rng: rng(0) });
        assert_close(value(y).mean().item(), (discrete::chain(w, w.denoiser, 4) * w.scores).sum().item(), 0.06);
        // Tokens drawn by model and exact twist: no variance. Else: no bias.
        let twist = |y| discrete::rows(w.value.unsqueeze(1), discrete::code(y, 4)).squeeze(1);
        let off = |o, i| discrete::particles(model, 8, 3, o + #{ tokens: 3, reward: value, rng: rng(i) }).log_evidence - w.value[63].item();
        for i in 0..20 { assert_close(off(#{ twist: twist, twisted: true }, i), 0.0, 1e-12); }
        for o in [#{}, #{ twist: twist }, #{ twist: |y| 0.5 * y.sum(1) }] {
            let ratios = [];
            for i in 0..400 { ratios.push(exp(off(o, i))); }
            let ratios = tensor(ratios);
            assert_close(ratios.mean().item(), 1.0, 3.5 * ratios.std().item() / 20);
        }"#)
    .unwrap();
}

#[test]
fn a_share_of_the_objective_asks_for_fewer_steps_where_data_are_narrow() {
    run(r#"
        // Steps of 100 that hold nine tenths, by the closed form's integral.
        for known in [[0.3, 66, 81], [0.6, 80, 86], [1.0, 87, 89], [2.0, 93, 92]] {
            let base = gaussian::field([1.0, known[0]], [0.0, 0.0]);
            let kept = |measure| adjoint_matching(base, base, tensor([[0.4]]).to(f64()), (), terminal_cost(|x| -x.sum(1)), #{
                grid: uniform(100), truncate: adaptive(0.9, #{ measure: measure }),
            }).adjoint.values.len();
            assert_close(tensor([kept(objective()), kept(control())]), tensor(known.extract(1)), 1.0);
        }"#)
    .unwrap();
}

#[test]
fn what_particles_cannot_do_is_said() {
    let one = "particles::run(field, rng(0).normal([4, 1]), (), #{ grid: uniform(5), ";
    for (rest, message) in [
        ("reward: |x, c| zeros([4]) - infinity() })", "a log weight must be above minus infinity, got none of 4"),
        (
            "reward: |x, c| tensor([0, 0, sqrt(-1.0), 0]) })",
            "the reward must be a number or minus infinity, got NaN for particle 2 after step 4",
        ),
        ("reward: |x, c| tensor([0, infinity(), 0, 0]) })", "got inf for particle 1"),
        ("reward: |x, c| x })", "the reward must be one number for each of 4 particles, got shape [4, 1] after step 4"),
        (
            "reward: |x, c| x.sum(1), twist: |x, t, c, v| if t > 0.5 { x } else { x.sum(1) } })",
            "the twist must be one number for each of 4 particles, got shape [4, 1] after step 2",
        ),
        (
            "reward: |x, c| x.sum(1), guide: |x, t, c, v| x.sum(1) })",
            "the guide must have the states' shape [4, 1], got [4] at step 0",
        ),
        (
            "reward: |x, c| x.sum(1), solver: euler(), guide: |x, t, c, v| x })",
            "a step without noise cannot be guided, got a guide at step 0",
        ),
        ("reward: |x, c| x.sum(1), solver: gddim(1), guide: |x, t, c, v| x })", "got a guide at step 4"),
        (
            "reward: |x, c| x.sum(1), guide: |x, t, c, v| sqrt(-1.0) * x })",
            "log weights must be numbers, got NaN for particle 0",
        ),
        ("reward: |x, c| x.sum(1), groups: 3 })", "groups must divide the 4 particles, got 3"),
        ("reward: |x, c| x.sum(1), at: [5] })", "the steps of at must lie between 0 and 4, got 5"),
        ("rewards: |x, c| x.sum(1) })", "unknown option `rewards`; did you mean `reward`?"),
        ("rng: rng(0) })", "a `reward` of the end states is needed"),
    ] {
        let found = refused(&format!("{one}{rest}"));
        assert!(found.contains(message), "{rest}: {found}");
    }
    let still = refused(
        "let path = rollout(field, zeros([2, 1]), (), #{ grid: uniform(4), solver: gddim(1), rng: rng(0) });
        girsanov(path, field, steered(field, |x, t, c, v| v))",
    );
    assert!(
        still.contains("flows must agree where a step has no noise, got different velocities at step 3"),
        "{still}"
    );
}

#[test]
fn what_fails_loses_nothing() {
    run(r#"
        let x = rng(1).normal([6, 2]);
        let before = x.to_array();
        let o = #{ grid: uniform(8), solver: sde(linear_decay(2)), reward: |x, c| 3 * x.sum(1), twist: |x, t, c, v| x.sum(1), threshold: 0.9 };
        let c = condition(#{ mean: zeros([6, 1]) });
        let good = particles::run(field, x, c, o + #{ rng: rng(3) });
        let failed = 0;
        for bad in [
            #{ reward: |x, c| zeros([6]) - infinity() }, #{ reward: |x, c| x }, #{ twist: |x, t, c, v| if t > 0.5 { sqrt(-1.0) * x.sum(1) } else { x.sum(1) } },
            #{ guide: |x, t, c, v| if t > 0.5 { x.sum(1) } else { x } }, #{ at: [9] },
        ] {
            try { particles::run(field, x, c, o + #{ rng: rng(3) } + bad); } catch { failed += 1; }
        }
        same(failed, 5);
        same(x.to_array(), before);
        let again = particles::run(field, x, c, o + #{ rng: rng(3) });
        same(again.last.to_array(), good.last.to_array());
        same(again.log_weights.to_array(), good.log_weights.to_array());
        // Weights are sums in f64, of f32 states too.
        same([again.last.dtype.to_string(), again.log_weights.dtype.to_string(), again.log_evidence.dtype.to_string()], ["f32", "f64", "f64"]);"#)
    .unwrap();
}

#[test]
fn more_particles_than_memory_holds_are_refused_before_they_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("many.rhai");
    let text = r#"import "stdlib/particles" as particles;
        let s = settings(#{ particles: 20000 });
        let base = flow("tiny/flux2");
        let c = base.encode("a small red ring on cream").repeat(s.particles);
        particles::run(base, base.noise(s.particles, rng(0)), c, #{ grid: uniform(2), reward: |x, c| x.sum([1, 2, 3]) });"#;
    std::fs::write(&script, text).unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amscript"));
        command.env("AMSCRIPT_DEVICE", "cpu"); // `--max-memory` bounds the processor's
        command.env("RAYON_NUM_THREADS", "1").arg("run").arg(&script).args(more).current_dir(&folder).output().unwrap()
    };
    let output = run(&["--max-memory", "1GB"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("expected room for") && said.contains("--max-memory"), "{said}");
    // The plan says so beforehand: memory by the particle, and the forwards.
    let planned = |particles: &str| {
        let text = String::from_utf8(run(&["--plan", "--set", &format!("particles={particles}")]).stdout).unwrap();
        let line = text.lines().find(|line| line.contains("most at once")).unwrap_or_else(|| panic!("{text}"));
        assert!(text.contains("work, without an update") && text.contains("forwards"), "{text}");
        let (number, unit) = line.rsplit_once(' ').unwrap();
        let number: f64 = number.rsplit(' ').next().unwrap().parse().unwrap();
        number * if unit == "GB" { 1e9 } else { 1e6 }
    };
    let [few, many] = ["2000", "20000"].map(planned);
    assert!(many > 2e9 && (8.0..10.5).contains(&(many / few)), "{few} {many}");
}

#[test]
fn help_says_what_each_function_costs_in_forwards() {
    for module in ["particles", "search"] {
        let path = format!("{}/stdlib/{module}.rhai", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let mut doc = String::new();
        for line in text.lines() {
            match line.strip_prefix("///") {
                Some(more) => doc.push_str(more),
                None => {
                    let costs = !line.starts_with("fn ") || doc.contains("forward");
                    assert!(costs, "{module}: `{line}` does not say what it costs");
                    doc.clear();
                }
            }
        }
    }
}

/// Runs a recipe, which checks its own numbers; gives what it printed.
fn recipe(name: &str, set: &[&str]) -> String {
    let out = tempfile::tempdir().unwrap();
    command::run(&format!("scripts/{name}.rhai"), &out.path().join("run"), set)
}

#[test]
fn recipes_of_closed_forms_reach_them() {
    for (name, set) in [
        ("tri_tsmc", &[][..]),
        ("surge", &["runs=40"]),
        ("cdm", &["updates=300", "runs=100"]),
        ("adaptive_order", &[]),
        ("pdi", &[]),
        ("foellmer", &["steps=100", "paths=50"]),
        ("discrete_am", &["updates=400"]),
        ("asbs", &[]),
    ] {
        recipe(&format!("inference/{name}"), set);
    }
}

#[test]
fn a_grid_that_ends_early_takes_few_forwards() {
    // FMRG of E kept nodes and two steps more: E + 1.
    for (steps, early, forwards) in [(16, 4, 5.0), (32, 8, 9.0), (48, 12, 13.0)] {
        let out = tempfile::tempdir().unwrap();
        let set = [format!("steps={steps}"), format!("early={early}")];
        let set = ["prompts=1", "draws=1", "through=false", &set[0], &set[1]];
        command::run("scripts/inference/fmrg.rhai", &out.path().join("run"), &set);
        let result = std::fs::read(out.path().join("run/result.json")).unwrap();
        let result: serde_json::Value = serde_json::from_slice(&result).unwrap();
        assert_eq!(result["measures"]["guided"]["forwards"]["mean"], forwards, "{result}");
    }
}

#[test]
fn recipes_that_train_run_in_a_small_setting() {
    for (name, set) in [
        ("cmad", &["updates=400"][..]),
        ("hjb", &["updates=800"]),
        ("tilt_matching", &["updates=80"]),
        ("adjoint_sampling", &["updates=2000"]),
        ("control_affine", &["updates=2500", "batch=1024", "tolerance=0.12"]),
        ("video", &["updates=20", "windows=[10]", "samples=4000"]),
    ] {
        recipe(&format!("inference/{name}"), set);
    }
}

#[test]
fn recipes_of_images_run_in_a_small_setting() {
    for (name, set, row) in [
        ("fmrg", &["prompts=2", "steps=4", "draws=2"][..], "guided"),
        ("fmrg", &["prompts=2", "steps=8", "draws=2", "through=false", "early=3"], "guided"),
        (
            "scaling",
            &["prompts=1", "steps=6", "draws=4", "neighbours=2", "rounds=1", "paths=4", "at=[3]", "back=2"],
            "neighbours",
        ),
        ("o3", &["steps=2", "seeds=3", "batch=4", "rounds=2"], "surrogate"),
        ("particles", &["prompts=2", "steps=4", "particles=2"], "fk"),
        ("particles", &["prompts=2", "steps=4", "particles=2", "method=das"], "das"),
        ("particles", &["prompts=1", "steps=4", "particles=2", "method=tds"], "tds"),
        ("particles", &["prompts=1", "steps=4", "method=svdd", "candidates=2"], "svdd"),
        ("particles", &["prompts=1", "steps=4", "particles=2", "method=urge"], "urge"),
        ("cmad_images", &["updates=2", "test_prompts=2", "batch=1", "steps=4", "window=2", "rank=2"], "CMAD"),
        (
            "buffer_am",
            &[
                "iterations=2",
                "batch=2",
                "steps=4",
                "rank=2",
                "size=1",
                "test_prompts=1",
                "images_per_prompt=2",
                "watch=[]",
            ],
            "tuned",
        ),
    ] {
        let printed = recipe(&format!("inference/{name}"), set);
        assert!(printed.contains(row), "{name}: {printed}");
    }
}

#[test]
fn what_truncations_of_the_optimal_control_gain_stands_beside_the_shares() {
    let printed = recipe("truncation", &["batch=1", "steps=4", "windows=[1, 4]", "scales=[1.0]", "sweeps=2"]);
    for row in ["scale 1.0, K = 1", "scale 1.0, K = 4", "scale 1.0, mean distance"] {
        assert!(printed.contains(row), "{row}: {printed}");
    }
}

#[test]
fn the_table_counts_forwards_of_every_line() {
    let printed = recipe(
        "tables/inference",
        &[
            "test_prompts=2",
            "images_per_prompt=2",
            "steps=4",
            "draws=[2]",
            "pushes=[0.3]",
            "trained=1",
            "batch=2",
            "rank=2",
            "watch=[]",
        ],
    );
    for row in ["base", "best of n", "FK steering", "search over paths", "TDS", "FMRG", "adjoint matching"] {
        assert!(printed.lines().any(|line| line.trim_start().starts_with(row)), "{row}: {printed}");
    }
}
