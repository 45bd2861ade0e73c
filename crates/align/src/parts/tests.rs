use super::*;
use crate::flow::{Condition, Velocity, uniform};
use crate::optim::{AdamW, OptimizerOptions, Params, StepOptions, Stored};
use crate::policy::{Advantage, Forward, Gamma, Grpo, Regression, RowWeight, Scale};
use crate::{Adaptive, AdjointMatching, Draft, Needs, Refl, RewardCost, Truncation};
use amscript_base::group::{Alone, threads};
use amscript_tensor::sample::sum_per_sample;
use amscript_tensor::{Rng, Stream};

/// `v = tanh(x w) - x`, trained.
#[derive(Clone)]
struct Net(Tensor);

impl Velocity for Net {
    fn velocity(&self, x: &Tensor, _: &Tensor, _: &Condition) -> Result<Tensor> {
        x.matmul(&self.0)?.tanh()? - x
    }

    fn rerun(&self) -> Option<(Arc<dyn Velocity>, Vec<Tensor>)> {
        Some((Arc::new(self.clone()), vec![self.0.clone()]))
    }
}

fn net(seed: u64) -> Net {
    let w = Rng::new(seed).normal(&[3, 3], DType::F32, &Device::Cpu).unwrap();
    Net((w * 0.3).unwrap().variable().unwrap())
}

const SAMPLES: usize = 12;

/// What a rank has of the batch: a reward that depends on the prompt, here a number.
fn batch(rows: Rows, stream: &Stream) -> Batch {
    let x0 = Rng::new(1).normal(&[SAMPLES, 3], DType::F32, &Device::Cpu).unwrap();
    let wanted = Rng::new(2).normal(&[SAMPLES], DType::F32, &Device::Cpu).unwrap();
    let prompts: Vec<String> = (rows.first..rows.first + rows.len).map(|i| format!("p{}", i / 4)).collect();
    let first = rows.first;
    let judge = move |x: &Tensor, own: Option<&Range<usize>>| {
        let (at, n) = own.map_or((0, x.dim(0)?), |own| (own.start, own.len()));
        (sum_per_sample(x)? - wanted.narrow(0, first + at, n)?)?.sqr()?.neg()
    };
    let x0 = x0.narrow(0, rows.first, rows.len).unwrap();
    let cost = RewardCost::by_row(judge, 2.0).unwrap();
    Batch { per_prompt: 4, rng: Some(stream.clone()), ..Batch::new(&x0, &Condition::of_text(&prompts), cost) }
}

/// Bytes of the gradient, rewards, what was measured, and where the stream is, after two updates and their later passes.
type Seen = (Vec<Vec<u8>>, Vec<f64>, BTreeMap<String, Vec<f64>>, u128);

fn seen(method: &dyn Method, most: Option<usize>, group: Arc<dyn Group>) -> Seen {
    let share = Share::new(SAMPLES, 4, most, &*group).unwrap();
    let (policy, base) = (net(5), net(6));
    let cut = Arc::new(Cut { share: share.clone(), group, variables: vec![policy.0.clone()] });
    let (stream, mut state) = (Stream::new(Rng::new(9)), MethodState::default());
    let mut seen = (Vec::new(), Vec::new(), BTreeMap::new(), 0);
    for _ in 0..2 {
        let batch = batch(share.rows(&share.own()), &stream);
        let mut found = match share.is_whole() {
            true => update(method, &policy, &base, &batch, &mut state).unwrap(),
            false => update_in_parts(method, [&policy, &base], &batch, &cut, &mut state).unwrap(),
        };
        loop {
            let gradient = pullback(&found.loss().unwrap(), &Tensor::new(1f32, &Device::Cpu).unwrap(), &cut.variables);
            let gradient = gradient.unwrap().remove(0);
            seen.0.push(bytes::of(&gradient).unwrap());
            seen.1 = read(&found.reward).unwrap();
            seen.2.extend(found.measured.iter().map(|(name, x)| (name.clone(), read(x).unwrap())));
            policy.0.set(&(policy.0.constant() - (gradient * 0.05).unwrap()).unwrap().copy().unwrap()).unwrap();
            let Some(next) = &found.next else { break };
            found = next(&policy).unwrap();
        }
    }
    seen.3 = stream.draw(|rng| rng.counter());
    seen
}

fn methods() -> Vec<Box<dyn Method>> {
    let grid = || uniform(4).unwrap();
    let adaptive = Truncation::Adaptive(Adaptive::new(0.6, 2).unwrap());
    let weight = RowWeight::Advantage(Advantage { scale: Scale::Batch { floor: 1e-4 }, clip: Some(1.0) }, 1.0);
    let running = Advantage { scale: Scale::Running { last: 8, least: 2 }, clip: None };
    vec![
        Box::new(AdjointMatching { truncate: Truncation::Last(2), ..AdjointMatching::new(grid()) }),
        Box::new(AdjointMatching { truncate: adaptive, ..AdjointMatching::new(grid()) }),
        Box::new(Draft { renoised: 2, ..Draft::new(grid()) }),
        Box::new(Refl { truncate: Truncation::Last(3), ..Refl::new(grid()) }),
        Box::new(Grpo { passes: 2, kl: 0.1, ..Grpo::new(grid()) }),
        Box::new(Grpo { advantage: running, ..Grpo::new(grid()) }),
        Box::new(Forward {
            times: 2,
            passes: 2,
            ..Forward::new(grid(), weight, Regression::Quadratic(Gamma::Number(1.1)))
        }),
        Box::new(Forward::new(grid(), RowWeight::Tilt, Regression::Quadratic(Gamma::Number(0.0)))),
    ]
}

#[test]
fn ranks_come_to_the_bytes_of_as_many_micro_batches() {
    for (i, method) in methods().iter().enumerate() {
        let alone = |most| seen(&**method, Some(most), Arc::new(Alone));
        for (ranks, most) in [(2, 8), (3, 4)] {
            for (rank, found) in threads(ranks, |group| seen(&**method, None, group)).into_iter().enumerate() {
                assert_eq!(found, alone(most), "method {i}, rank {rank} of {ranks}");
            }
        }
        // One process has two parts, the other one.
        assert!(
            threads(2, |group| seen(&**method, Some(4), group)).iter().all(|found| *found == alone(4)),
            "method {i}"
        );
    }
}

#[test]
fn parts_come_to_the_whole_but_for_rounding() {
    for (i, method) in methods().iter().enumerate() {
        let (whole, parts) = (seen(&**method, None, Arc::new(Alone)), seen(&**method, Some(4), Arc::new(Alone)));
        let numbers = |found: &Seen| -> Vec<f64> {
            let gradients = found.0.iter().flat_map(|g| read(&bytes::read(g, DType::F32, &[9]).unwrap()).unwrap());
            gradients.chain(found.1.clone()).chain(found.2.values().flatten().copied()).collect()
        };
        let (a, b) = (numbers(&whole), numbers(&parts));
        let size = a.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert!(a.len() == b.len() && whole.0.len() == parts.0.len());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 2e-6 * size), "method {i}: {a:?}\n{b:?}");
        assert_eq!(whole.3, parts.3);
        assert_ne!(whole.0, vec![vec![0u8; 36]; whole.0.len()]);
    }
}

/// `v = tanh(x a) b + c - x`, all trained.
struct Deep(Vec<Tensor>);

impl Velocity for Deep {
    fn velocity(&self, x: &Tensor, _: &Tensor, _: &Condition) -> Result<Tensor> {
        x.matmul(&self.0[0])?.tanh()?.matmul(&self.0[1])?.broadcast_add(&self.0[2])? - x
    }
}

fn deep() -> (Deep, Params) {
    let of = |(i, shape): (usize, &&[usize])| {
        Rng::new(i as u64).normal(shape, DType::F32, &Device::Cpu).unwrap().variable().unwrap()
    };
    let shapes: [&[usize]; 3] = [&[3, 4], &[4, 3], &[3]];
    let tensors: Vec<Tensor> = shapes.iter().enumerate().map(of).collect();
    let names = ["a", "b", "c"].map(String::from);
    (Deep(tensors.clone()), Params::new(names.into_iter().zip(tensors)).unwrap())
}

/// What three updates of all numbers come to, from a state or anew: the values' bytes, the rank's state, and how many numbers its moments hold.
fn trained(
    most: usize,
    group: Arc<dyn Group>,
    from: Option<&[(String, Stored)]>,
) -> (Vec<Vec<u8>>, Vec<(String, Stored)>, usize) {
    let (policy, params) = deep();
    let share = Share::new(SAMPLES, 1, Some(most), &*group).unwrap();
    let cut = Arc::new(Cut { share: share.clone(), group: group.clone(), variables: params.tensors() });
    let mut optimizer = AdamW::sharded(params, OptimizerOptions::default(), group).unwrap();
    if let Some(state) = from {
        optimizer.load_state(|name| state.iter().find(|(other, _)| other == name).map(|(_, x)| x.clone())).unwrap();
    }
    let method = AdjointMatching { truncate: Truncation::Last(2), ..AdjointMatching::new(uniform(4).unwrap()) };
    for _ in 0..3 {
        let batch = Batch { per_prompt: 1, ..batch(share.rows(&share.own()), &Stream::new(Rng::new(9))) };
        let found = update_in_parts(&method, [&policy, &net(6)], &batch, &cut, &mut MethodState::default()).unwrap();
        let clipped = StepOptions { clip: Some(0.1), ..StepOptions::default() };
        assert!(optimizer.step(&found.loss().unwrap(), &clipped).unwrap().norm > 0.1);
    }
    let values = optimizer.params().tensors().iter().map(|x| bytes::of(x).unwrap()).collect();
    (values, optimizer.state().unwrap(), optimizer.held())
}

/// What the ranks' states are together, as a checkpoint has it.
fn together(states: &[Vec<(String, Stored)>]) -> Vec<(String, Stored)> {
    let of = |(i, (name, stored)): (usize, &(String, Stored))| match stored {
        Stored::Whole(_) => (name.clone(), stored.clone()),
        Stored::Shard(shard) => {
            let Stored::Shard(own) = &states[shard.owner][i].1 else { panic!("{name} must be shared on all ranks") };
            (name.clone(), Stored::Whole(own.own.clone().unwrap()))
        }
    };
    states[0].iter().enumerate().map(of).collect()
}

#[test]
fn ranks_that_share_the_moments_come_to_the_bytes_of_one_process() {
    let (all, once, _) = trained(3, Arc::new(Alone), None);
    let twice = trained(3, Arc::new(Alone), Some(&once)).0;
    for (ranks, most_held) in [(1, 54), (2, 30), (3, 24), (4, 24)] {
        let found = threads(ranks, |group| trained(3, group, None));
        assert!(found.iter().all(|(values, ..)| *values == all), "{ranks} ranks");
        let held: Vec<usize> = found.iter().map(|(.., held)| *held).collect();
        assert_eq!((held.iter().sum(), held.iter().max()), (2 * 27, Some(&most_held)), "{ranks} ranks");
        let state = together(&found.into_iter().map(|(_, state, _)| state).collect::<Vec<_>>());
        for others in 1..=4 {
            let resumed = threads(others, |group| trained(3, group, Some(&state)).0);
            assert!(resumed.iter().all(|values| *values == twice), "saved by {ranks}, resumed by {others}");
        }
    }
}

#[test]
fn a_shared_state_that_does_not_fit_and_gradients_that_differ_are_refused_by_all_ranks() {
    let optimizer = |group| AdamW::sharded(deep().1, OptimizerOptions::default(), group).unwrap();
    let messages = threads(2, |group| {
        let (rank, mut own) = (group.rank(), optimizer(group));
        let state = own.state().unwrap();
        let kept = |name: &str| state.iter().find(|(other, _)| other == name).map(|(_, x)| x.clone());
        let without = |name: &str| kept(name).filter(|_| name != "first.b");
        let narrow = |name: &str| match name {
            "second.b" => Some(Stored::Whole(Tensor::new(&[1f32], &Device::Cpu).unwrap())),
            _ => kept(name),
        };
        own.load_state(kept).unwrap();
        let gradients: Vec<Tensor> =
            own.params().tensors().iter().map(|x| (x.constant() * (1.0 + rank as f64)).unwrap()).collect();
        [
            own.load_state(without).unwrap_err(),
            own.load_state(narrow).unwrap_err(),
            optimizer(Arc::new(Alone)).load_state(kept).unwrap_err(),
            own.apply(&gradients, &StepOptions::default()).unwrap_err(),
        ]
        .map(|error| error.message)
    });
    for (rank, [missing, shape, elsewhere, differ]) in messages.iter().enumerate() {
        assert_eq!(missing, "load: `first.b` must be present, got no tensor of that name", "rank {rank}");
        assert_eq!(shape, "load: `second.b` must have shape [4, 3], got [1]", "rank {rank}");
        assert!(elsewhere.contains("load: `first.a` must be a tensor, got shard([3, 4] on rank 0)"), "{elsewhere}");
        assert!(differ.contains("step: all ranks must have the same gradients, got others on rank 1"), "{differ}");
    }
}

/// Fails on one prompt; draws as often as its part has samples, where told to.
struct Odd {
    draws: bool,
}

impl Method for Odd {
    fn name(&self) -> &str {
        "odd"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn update(&self, policy: &dyn Velocity, _: &dyn Velocity, batch: &Batch, _: &mut MethodState) -> Result<Update> {
        if self.draws {
            batch.stream("odd")?.draw(|rng| rng.uniforms(batch.x0.dim(0).unwrap_or_default()));
        } else if batch.condition.text[0] == "p2" {
            bail!(Numeric, "odd: not finite");
        }
        let v = policy.velocity(&batch.x0, &batch.x0, &batch.condition)?;
        let reward = batch.cost.evaluate(&batch.x0)?;
        batch.whole(&read(&reward)?)?;
        Ok(Update::new(v.mean_all()?, &reward))
    }
}

#[test]
fn an_error_of_one_part_is_an_error_of_all_ranks() {
    let fails = |most, group: Arc<dyn Group>, draws| {
        let share = Share::new(SAMPLES, 4, most, &*group).unwrap();
        let (policy, batch) = (net(5), batch(share.rows(&share.own()), &Stream::new(Rng::new(9))));
        let cut = Arc::new(Cut { share, group, variables: vec![policy.0.clone()] });
        let mut state = MethodState::default();
        let found = update_in_parts(&Odd { draws }, [&policy, &policy], &batch, &cut, &mut state);
        found.map(|_| ()).unwrap_err()
    };
    let errors = threads(3, |group| fails(None, group, false));
    let messages: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(messages, ["rank 2: odd: not finite", "rank 2: odd: not finite", "odd: not finite"]);
    assert!(errors.iter().all(|error| error.kind == Kind::Numeric));
    assert_eq!(fails(Some(4), Arc::new(Alone), false).message, "odd: not finite");
    let message = fails(Some(8), Arc::new(Alone), true).message;
    assert!(message.contains("must draw as many numbers for a sample"), "{message}");
}
