use super::*;
use crate::flow::{Condition, Velocity, uniform};
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
