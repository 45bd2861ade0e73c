//! The golden case `adjoint` with noise: states, adjoints, targets, losses and gradients; the implicit sampler; marginals.

use crate::analytic::toy::{Gaussian, Mlp, Tensors, adjoint_matching, golden, numbers, relative, reward};
use amscript::align::{
    AdjointIndex, AdjointMatching, Loss, MatchingOptions, Norm, Regularizer, Truncation, Units, control_target,
    lean_adjoint, terminal_gradient,
};
use amscript::flow::{Condition, Draw, Gddim, Grid, Noise, RolloutOptions, Sde, Solver, rollout, uniform};
use amscript::tensor::grad::gradients;
use amscript::tensor::{DType, Device, Rng, Tensor};
use std::sync::{Arc, Mutex};

const LAMBDA: f64 = 3.0;
const STEPS: usize = 10;

struct Case {
    expected: Tensors,
    base: Mlp,
    tuned: Mlp,
    name: &'static str,
}

fn flat(gradients: Vec<Tensor>) -> Tensor {
    Tensor::cat(&gradients.iter().map(|g| g.flatten_all().unwrap()).collect::<Vec<_>>(), 0).unwrap()
}

impl Case {
    fn new(name: &'static str) -> Self {
        let (expected, base, tuned) = golden();
        Self { expected, base, tuned, name }
    }

    fn rollout(&self, solver: Arc<dyn Solver>) -> RolloutOptions {
        let noise = self.expected["in.noise"].clone();
        let draw: Draw = Arc::new(move |k, _| noise.get(k));
        RolloutOptions { solver, draw: Some(draw), ..RolloutOptions::new(uniform(STEPS).unwrap()) }
    }

    fn check(&self, name: &str, got: &Tensor, tolerance: f64) {
        let error = relative(got, &self.expected[&format!("out.sde.{}.{name}", self.name)]);
        assert!(error < tolerance, "{} {name}: {error:e}", self.name);
    }
}

/// The schedules of the golden case.
fn schedules() -> [(&'static str, Noise); 5] {
    let h = 1.0 / STEPS as f64;
    let clipped = move |t: f64| Ok(2.0 * (1.0 - t + h) / (t + h));
    [
        ("memoryless_offset", Noise::Memoryless { offset: None }),
        ("memoryless_clipped", Noise::Schedule(Arc::new(clipped))),
        ("linear", Noise::LinearDecay(1.0)),
        ("linear2", Noise::LinearDecay(2.0)),
        ("sin2", Noise::SineSquared(1.0)),
    ]
}

#[test]
fn states_adjoints_and_targets() {
    for (name, noise) in schedules() {
        let case = Case::new(name);
        let options = case.rollout(Arc::new(Sde { noise, last: None }));
        let path = rollout(&case.tuned, &case.expected["in.x0"], &Condition::default(), &options).unwrap();
        let steps: Vec<_> = path.window().map(|k| path.dynamics(k).unwrap()).collect();
        let column =
            |f: &dyn Fn(usize) -> f64| Tensor::new((0..STEPS).map(f).collect::<Vec<f64>>(), &Device::Cpu).unwrap();
        case.check("w", &column(&|k| steps[k].w.unwrap()), 1e-12);
        case.check("rho", &column(&|k| steps[k].rho), 1e-12);
        case.check("G", &column(&|k| steps[k].sigma() * steps[k].control_gain()), 1e-12);
        case.check("states", &Tensor::stack(&path.states, 0).unwrap(), 1e-11);
        let end = terminal_gradient(&reward(&case.expected["in.reward_c"], LAMBDA), path.last()).unwrap();
        let adjoint = lean_adjoint(&case.base, &path, &end.gradient, AdjointIndex::Same).unwrap();
        let rows = [adjoint.values.clone(), vec![end.gradient]].concat();
        case.check("adjoint", &Tensor::stack(&rows, 0).unwrap(), 1e-11);
        let targets = control_target(&adjoint, &Regularizer::quadratic(), Norm::Sample).unwrap();
        case.check("velocity_target", &Tensor::stack(&targets, 0).unwrap(), 1e-11);
    }
}

#[test]
fn updates_with_noise() {
    for (name, noise) in schedules() {
        for (k, units) in [1, 3, STEPS].iter().flat_map(|k| [(*k, Units::Velocity), (*k, Units::Control)]) {
            let case = Case::new(name);
            if name == "sin2" && units == Units::Control {
                continue; // no noise at t = 0
            }
            let options = AdjointMatching {
                rollout: case.rollout(Arc::new(Sde { noise: noise.clone(), last: None })),
                truncate: Truncation::Last(k),
                loss_options: MatchingOptions { units, ..Default::default() },
                ..AdjointMatching::new(uniform(STEPS).unwrap())
            };
            let cost = reward(&case.expected["in.reward_c"], LAMBDA);
            let x0 = &case.expected["in.x0"];
            let update = |options: &AdjointMatching| {
                adjoint_matching(&case.tuned, &case.base, x0, &Condition::default(), &cost, options).unwrap()
            };
            let prefix = if units == Units::Velocity { "velocity_" } else { "" };
            let squared = update(&options);
            case.check(&format!("{prefix}loss.K{k}"), &squared.losses[0].reshape(1).unwrap(), 1e-11);
            let gradient = flat(gradients(&squared.losses[0], &case.tuned.params()).unwrap());
            case.check(&format!("{prefix}grad.K{k}"), &gradient, 1e-10);
            // Fenchel's is the same for the quadratic penalty, where there is noise at all.
            if name != "sin2" || k < STEPS {
                let fenchel = update(&AdjointMatching { loss: Loss::FenchelYoung, ..options.clone() });
                case.check(&format!("{prefix}loss.K{k}"), &fenchel.losses[0].reshape(1).unwrap(), 1e-11);
                let gradient = flat(gradients(&fenchel.losses[0], &case.tuned.params()).unwrap());
                case.check(&format!("{prefix}grad.K{k}"), &gradient, 1e-10);
            }
            if k == STEPS {
                let free = update(&AdjointMatching { noise_free_end: true, ..options });
                let trace = free.trace.unwrap();
                let rows = [trace.adjoint.unwrap().values, vec![trace.end.unwrap().gradient]].concat();
                case.check("adjoint_noise_free", &Tensor::stack(&rows, 0).unwrap(), 1e-11);
            }
        }
    }
}

#[test]
fn control_units_need_noise() {
    let case = Case::new("sin2");
    let options = AdjointMatching {
        rollout: case.rollout(Arc::new(Sde { noise: Noise::SineSquared(1.0), last: None })),
        loss_options: MatchingOptions { units: Units::Control, ..Default::default() },
        ..AdjointMatching::new(uniform(STEPS).unwrap())
    };
    let cost = reward(&case.expected["in.reward_c"], LAMBDA);
    let x0 = &case.expected["in.x0"];
    let update = adjoint_matching(&case.tuned, &case.base, x0, &Condition::default(), &cost, &options);
    assert!(update.err().unwrap().message.contains("got none at step 0"));
}

#[test]
fn gddim_steps() {
    let case = Case::new("gddim");
    let e = &case.expected;
    let (ts, ss) = (numbers(&e["in.gddim.t"]), numbers(&e["in.gddim.s"]));
    for (j, eta) in [0.0, 0.5, 1.0, 1.7].into_iter().enumerate() {
        let solver = Gddim::new(eta).unwrap();
        for (i, (t, s)) in ts.iter().zip(&ss).enumerate() {
            let mut times = vec![0.0, *t, *s, 1.0];
            times.dedup();
            let k = times.iter().position(|x| x == t).unwrap();
            let grid = Grid::new(times).unwrap();
            let (x, z) = (&e["in.gddim.x"], &e["in.gddim.z"]);
            let step = solver.dynamics(&grid, k).unwrap();
            let v = amscript::flow::Velocity::velocity(
                &case.tuned,
                x,
                &amscript::flow::time_tensor(*t, x).unwrap(),
                &Condition::default(),
            );
            let next = (step.advance(x, &v.unwrap()).unwrap() + (z * step.noise_std()).unwrap()).unwrap();
            let expected = e["out.gddim.next"].get(i).unwrap().get(j).unwrap();
            assert!(relative(&next, &expected) < 1e-11, "{eta} {t} {s}");
            let var = numbers(&e["out.gddim.var"].get(i).unwrap())[j];
            assert!((step.noise_std().powi(2) - var).abs() < 1e-13, "{eta} {t} {s}");
        }
        let path = rollout(&case.tuned, &e["in.x0"], &Condition::default(), &case.rollout(Arc::new(solver))).unwrap();
        let states = Tensor::stack(&path.states, 0).unwrap();
        assert!(relative(&states, &e["out.gddim.rollout"].get(j).unwrap()) < 1e-11, "{eta}");
    }
}

/// Mean and deviation of the end states, and their correlation with the starts.
fn moments(solver: Arc<dyn Solver>, steps: usize, paths: usize) -> [f64; 3] {
    let field = Gaussian { means: [0.0, 1.0], deviations: [1.0, 0.5] };
    let rng = Arc::new(Mutex::new(Rng::new(3)));
    let x0 = rng.lock().unwrap().normal(&[paths, 1], DType::F64, &Device::Cpu).unwrap();
    let stream = rng.clone();
    let draw: Draw = Arc::new(move |_, x| stream.lock().unwrap().normal(x.dims(), x.dtype(), x.device()));
    let options = RolloutOptions { solver, draw: Some(draw), keep: 1, ..RolloutOptions::new(uniform(steps).unwrap()) };
    let path = rollout(&field, &x0, &Condition::default(), &options).unwrap();
    let (a, b) = (numbers(&x0), numbers(path.last()));
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (ma, mb) = (mean(&a), mean(&b));
    let cov = |x: &[f64], mx: f64, y: &[f64], my: f64| {
        x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum::<f64>() / x.len() as f64
    };
    let (va, vb) = (cov(&a, ma, &a, ma), cov(&b, mb, &b, mb));
    [mb, vb.sqrt(), cov(&a, ma, &b, mb) / (va * vb).sqrt()]
}

#[test]
fn every_noise_keeps_the_marginals_and_forgets_as_much_as_it_should() {
    let sde = |noise| Arc::new(Sde { noise, last: None }) as Arc<dyn Solver>;
    // Correlations of X_0 and X_1 from 2e5 paths of 2000 steps: the sheet's table.
    let cases: [(Arc<dyn Solver>, Option<f64>); 8] = [
        (Arc::new(amscript::flow::Euler), Some(1.0)),
        (sde(Noise::Memoryless { offset: None }), Some(0.0)),
        (sde(Noise::LinearDecay(1.0)), Some(0.554)),
        (sde(Noise::LinearDecay(2.0)), Some(0.305)),
        (sde(Noise::SineSquared(1.0)), Some(0.445)),
        (sde(Noise::SineSquared(2.0)), Some(0.196)),
        (Arc::new(Gddim::new(1.0).unwrap()), Some(0.0)),
        (Arc::new(Gddim::new(0.3).unwrap()), None),
    ];
    for (case, (solver, correlation)) in cases.into_iter().enumerate() {
        let name = format!("case {case}");
        let [mean, deviation, found] = moments(solver, 200, 20_000);
        // Standard errors: 0.0035, 0.0025, 0.007; and a bias of the 200 steps.
        assert!((mean - 1.0).abs() < 0.015 && (deviation - 0.5).abs() < 0.012, "{name}: {mean} {deviation}");
        if let Some(expected) = correlation {
            assert!((found - expected).abs() < 0.025, "{name}: {found} {expected}");
        }
    }
}
