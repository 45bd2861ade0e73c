//! Chapter `policy`: methods that ask a reward for its value alone, and their parts.

use super::callback::Callback;
use super::flow::Trajectory;
use super::method::Method;
use super::policy_choice::Reference;
use super::sampler::Sampler;
use super::update::{euler, grid, rolling, written};
use super::*;
use crate::options;
use amscript_align::flow::{Condition, Grid, Noise, Sde, Velocity};
use amscript_align::policy::{
    self as methods, Advantage, Combine, Divergence, Ends, Follow, Kept, Normalise, Regression, RowWeight, Scale,
    StepWeight, Times, Trained, Trust,
};
use amscript_align::{Reduction, RewardCost, Selection, terminal_gradient};
use amscript_model::Flow;
use amscript_reward::RewardModel;
use amscript_tensor::check::{deferred_checks, read};
use amscript_tensor::grad::pullback;
use amscript_tensor::sample::spread;
use amscript_tensor::{Stream, Tensor};

fn noisy() -> Sampler {
    Sampler::new(Sde { noise: Noise::FlowGrpo(0.7), last: None }, "sde(flow_grpo_noise(0.7))")
}

options! {
    /// Choices of a policy gradient on a stochastic path.
    pub struct GrpoOptions {
        /// The times, from 0 (noise) to 1 (data).
        grid: Grid = grid(),
        /// How to step where there is noise.
        solver: Sampler = noisy(),
        /// Which steps have noise and are trained.
        steps: Trained = Trained::All,
        /// What a reward about its group's mean is divided by.
        scale: Scale = Scale::Batch { floor: 1e-4 },
        /// The largest size of an advantage; () means no bound.
        advantage_clip: Option<f64> = Some(5.0),
        /// Multiply advantages above 0 by how far the end is from the nearest of its group.
        diversity: bool = false,
        /// How far one batch may move the policy.
        trust: Trust = Trust::PerDimension(1e-4),
        /// What the log-ratio is measured in.
        ratio: Normalise = Normalise::Plain,
        /// Mean of the log-ratio over a sample's entries, as everywhere published, or the sum, that of the Gaussians.
        reduction: Reduction = Reduction::Mean,
        /// How much each step counts.
        weight: StepWeight = StepWeight::Equal,
        /// Weight of the pull to the reference.
        kl: f64 = 0.0,
        /// The distance from the reference.
        distance: Divergence = Divergence::Velocity,
        /// Pull this share of the samples alone, those that the batch's further judges trust least; () means all.
        gate: Option<f64> = None,
        /// What the policy is held near: () means the base; or a flow, or how a copy of the policy follows.
        reference: Reference = Reference::default(),
        /// How often the samples of a batch are gone through.
        passes: usize = 1,
        /// Optimizer steps of a pass, each with its part of the samples.
        minibatches: usize = 1,
        /// One initial noise for all samples of a prompt.
        same_noise: bool = false,
        /// Scale of classifier-free guidance, of rollout, ratio and reference; 1 means none.
        guidance: f64 = 1.0,
        /// Run the policy again in the loss's backward, at one step after the other, instead of keeping the graphs of all.
        checkpoint_steps: bool = false,
        /// The random stream of noise and steps; () means the batch's.
        rng: Option<Stream> = None,
    }
}

options! {
    /// Choices of a loss at noised ends.
    pub struct ForwardOptions {
        /// The times, from 0 (noise) to 1 (data).
        grid: Grid = grid(),
        /// How ends are sampled.
        solver: Sampler = euler(),
        /// Whose ends are judged.
        ends: Ends = Ends::Policy,
        /// What an end counts.
        weight: RowWeight = RowWeight::Advantage(Advantage { scale: Scale::Batch { floor: 1e-4 }, clip: Some(1.0) }, 1.0),
        /// How weights and errors become a loss.
        loss: Regression = Regression::Quadratic(methods::Gamma::Number(1.1)),
        /// Weight of the squared distance from the reference.
        anchor: f64 = 0.0,
        /// What the policy is held near: () means the base; or a flow, or how a copy of the policy follows.
        reference: Reference = Reference::default(),
        /// How the old policy follows the policy.
        old: Follow = Follow::Decay(0.0),
        /// Times that an end is noised to.
        times: usize = 1,
        /// Their law.
        law: Times = Times::Uniform,
        /// The latest time.
        latest: f64 = 1.0,
        /// Optimizer steps of a batch, each with new noise.
        passes: usize = 1,
        /// Scale of classifier-free guidance of the ends; 1 means none.
        guidance: f64 = 1.0,
        /// The random stream of noise and times; () means the batch's.
        rng: Option<Stream> = None,
    }
}

options! {
    /// Choices of LeapAlign.
    pub struct LeapOptions {
        /// The times, from 0 (noise) to 1 (data).
        grid: Grid = grid(),
        /// How to step from one time to the next.
        solver: Sampler = euler(),
        /// How much of the gradient passes the second leap's input.
        alpha: f64 = 0.3,
        /// Scale of the policy's classifier-free guidance; 1 means none.
        guidance: f64 = 1.0,
        /// The random stream that the states are drawn from; () means the batch's.
        rng: Option<Stream> = None,
    }
}

options! {
    /// Choices of VGG-Flow.
    pub struct VggOptions {
        /// The times, from 0 (noise) to 1 (data).
        grid: Grid = grid(),
        /// How to step from one time to the next.
        solver: Sampler = euler(),
        /// The steps that enter the loss.
        loss_steps: Selection = Selection::All,
        /// How much of the reward's gradient the velocity should have, as a closure of time; () means `t^2`.
        eta: Option<FnPtr> = None,
        /// The largest norm of a sample's gradient of the scaled reward; () means no bound.
        gradient_clip: Option<f64> = None,
        /// Scale of classifier-free guidance, of policy and base; 1 means none.
        guidance: f64 = 1.0,
        /// The random stream of noise and steps; () means the batch's.
        rng: Option<Stream> = None,
    }
}

options! {
    /// How candidates are looked at.
    pub struct ExploreOptions {
        /// Noises drawn for each prompt, a multiple of its samples.
        candidates: usize = 96,
        /// The coarse times of the preview.
        grid: Grid = amscript_align::flow::uniform(6).unwrap_or_else(|_| unreachable!()),
        /// How the preview steps.
        solver: Sampler = euler(),
        /// Which of them the method starts from.
        kept: Kept = Kept::BestWorst,
    }
}

options! {
    /// How rewards become advantages.
    pub struct AdvantageOptions {
        /// What a reward about its group's mean is divided by.
        scale: Scale = Scale::Batch { floor: 1e-4 },
        /// The largest size; () means no bound.
        clip: Option<f64> = None,
        /// Of several rewards, what each counts; () means 1.
        weights: Option<Vec<f64>> = None,
        /// How several rewards are combined.
        combine: Combine = Combine::Rewards,
    }
}

options! {
    /// How a step's likelihood is measured.
    pub struct TransitionOptions {
        /// What the log-ratio is measured in.
        ratio: Normalise = Normalise::Plain,
        /// Mean or sum over a sample's entries.
        reduction: Reduction = Reduction::Mean,
    }
}

options! {
    /// How ends are noised.
    pub struct NoisedOptions {
        /// Rows that follow one another and have one noise and time.
        share: usize = 1,
        /// The law of times.
        law: Times = Times::Uniform,
        /// The latest time.
        latest: f64 = 1.0,
    }
}

impl GrpoOptions {
    fn method(self, context: &NativeCallContext) -> Method {
        let (text, rng) = (written("grpo", self.changed()), self.rng.clone());
        let core = methods::Grpo {
            rollout: rolling(context, self.grid, self.solver),
            steps: self.steps,
            advantage: Advantage { scale: self.scale, clip: self.advantage_clip },
            diversity: self.diversity,
            trust: self.trust,
            normalise: self.ratio,
            reduction: self.reduction,
            weight: self.weight,
            kl: self.kl,
            divergence: self.distance,
            gate: self.gate,
            reference: self.reference.0,
            passes: self.passes,
            minibatches: self.minibatches,
            same_noise: self.same_noise,
            guidance: self.guidance,
            checkpoint_steps: self.checkpoint_steps,
        };
        Method::new(Arc::new(core), text).drawing_from(rng)
    }
}

impl ForwardOptions {
    fn method(self, context: &NativeCallContext) -> Method {
        let (text, rng) = (written("forward_process", self.changed()), self.rng.clone());
        let core = methods::Forward {
            rollout: rolling(context, self.grid, self.solver),
            ends: self.ends,
            weight: self.weight,
            loss: self.loss,
            anchor: self.anchor,
            reference: self.reference.0,
            old: self.old,
            times: self.times,
            law: self.law,
            until: self.latest,
            passes: self.passes,
            guidance: self.guidance,
        };
        Method::new(Arc::new(core), text).drawing_from(rng)
    }
}

impl VggOptions {
    fn method(self, context: &NativeCallContext) -> Method {
        let (text, rng) = (written("vgg_flow", self.changed()), self.rng.clone());
        let closure = self.eta.map(|eta| Callback::new(context, "vgg_flow: option `eta`", eta));
        let eta = move |t: f64| closure.as_ref().map_or(Ok(t * t), |closure| closure.call::<f64>((t,)));
        let core = methods::VggFlow {
            rollout: rolling(context, self.grid, self.solver),
            steps: self.loss_steps,
            eta: Arc::new(eta),
            gradient_clip: self.gradient_clip,
            guidance: self.guidance,
        };
        Method::new(Arc::new(core), text).drawing_from(rng)
    }
}

/// A flow that a reward's gradient pulls at as it is sampled.
struct Pulled {
    flow: Flow,
    reward: RewardModel,
    weight: f64,
}

impl Velocity for Pulled {
    fn velocity(&self, x: &Tensor, t: &Tensor, condition: &Condition) -> Result<Tensor> {
        let times = read(t)?;
        if times.iter().all(|t| *t == 0.0) {
            return self.flow.velocity(x, t, condition);
        }
        let by_time = |f: fn(f64) -> f64| {
            let factors: Vec<f64> = times.iter().map(|t| f(*t)).collect();
            spread(&Tensor::new(factors, x.device())?.to_dtype(x.dtype())?, x)
        };
        let ahead = by_time(|t| 1.0 - t)?;
        let push = by_time(|t| if t == 0.0 { 0.0 } else { (t - 1.0) / t })?;
        let x = x.leaf();
        let v = self.flow.velocity(&x, t, condition)?;
        let (flow, reward, text) = (self.flow.clone(), self.reward.clone(), condition.text.clone());
        let score = move |x1: &Tensor| {
            let images = flow.decode(x1)?;
            let prompts = if text.is_empty() { vec![String::new(); images.dim(0)?] } else { text.clone() };
            reward.score(&images, &prompts)
        };
        let cost = RewardCost::new(score, self.weight)?;
        let value = v.constant().to_dtype(x.dtype())?;
        let data = (x.constant() + value.broadcast_mul(&ahead)?)?;
        let pull = deferred_checks(|| terminal_gradient(&cost, &data))?.gradient;
        // d x1_hat / dx = 1 + (1 - t) dv / dx: a Gaussian's posterior mean, and so exact for a reward that is linear
        let through = pullback(&v, &pull.to_dtype(v.dtype())?, &[x])?.remove(0).to_dtype(pull.dtype())?;
        let pull = (pull + through.broadcast_mul(&ahead)?)?;
        value + pull.broadcast_mul(&push)?
    }
}

/// The numbers of one reward, or of several in an array.
fn several(rewards: Dynamic) -> Result<Vec<Tensor>> {
    match <Tensor as option::FromScript>::from_script(rewards.clone()) {
        Some(one) => Ok(vec![one]),
        None => option::convert(rewards, "advantages: rewards"),
    }
}

/// What each of `n` rewards counts.
fn weights_of(given: Option<Vec<f64>>, n: usize) -> Result<Vec<f64>> {
    let weights = given.unwrap_or_else(|| vec![1.0; n]);
    if n == 0 || weights.len() != n {
        bail!(Value, "advantages: there must be a weight for each of {n} rewards, got {}", weights.len());
    }
    Ok(weights)
}

fn count(n: i64, place: &str) -> Result<usize> {
    option::convert(n.into(), place)
}

fn rows(rows: Vec<u32>) -> Array {
    rows.into_iter().map(|row| Dynamic::from(row as i64)).collect()
}

/// Methods that ask a reward for its value alone, in groups of samples of one prompt; their parts; and neighbours that follow a reward's gradient.
/// `stdlib/policy` has the published methods as option sets of these.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod policy {
    use super::*;

    /// A policy gradient on a stochastic path: the likelihood of each trained step, weighed by how much better its sample is than others of the prompt.
    ///
    /// The ratio comes from the change of velocity and the step's own noise, so it is exactly 1 until the policy changes. A batch of N steps costs N
    /// forwards: the first pass has the rollout's velocities. With `passes` or `minibatches` an update has more behind it, `update.again()`.
    /// `measured` has the mean `ratio`, the share `clipped`, `silent`, the share of samples whose group is tied, and `kl`.
    ///
    /// ```rhai
    /// let w = param(tensor([0.0]));
    /// let policy = velocity_field(|x, t, c| w - x);
    /// let b = batch(tensor([[1.0], [2.0]]), (), terminal_cost(|x| x.sum(1)), #{ per_prompt: 2, rng: rng(0) });
    /// let update = grpo(#{ grid: uniform(4) }).update(policy, policy, b);
    /// [update.measured.ratio.item(), update.measured.clipped.item()]      //=> [1.0, 0.0]
    /// grpo(#{ steps: window(2) })                                         //=> grpo(#{ steps: window(2) })
    /// grpo(#{ solver: euler() }).update(policy, policy, b)                //=> error: the sampler must draw noise
    /// ```
    #[rhai_fn(return_raw)]
    pub fn grpo(context: NativeCallContext, options: Map) -> RhaiResultOf<Method> {
        Ok(GrpoOptions::parse("grpo", options)?.method(&context))
    }

    /// Regression at noised ends: ends are sampled and judged, noised anew, and the error of the velocity there counts by how good the end is.
    ///
    /// ```rhai
    /// let w = param(tensor([0.0]));
    /// let policy = velocity_field(|x, t, c| w - x, w);
    /// let b = batch(tensor([[1.0], [2.0]]), (), terminal_cost(|x| x.sum(1)), #{ per_prompt: 2, rng: rng(0) });
    /// forward_process(#{ grid: uniform(2), loss: dpo_loss(100) }).update(policy, policy, b).measured.keys()    //=> ["loss", "reward"]
    /// forward_process(#{ loss: quadratic_loss(0.9) }).update(policy, policy, b)    //=> error: weights + gamma + anchor must be above 0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn forward_process(context: NativeCallContext, options: Map) -> RhaiResultOf<Method> {
        Ok(ForwardOptions::parse("forward_process", options)?.method(&context))
    }

    /// LeapAlign: the reward's gradient through two one-step leaps between states of a path (arXiv:2604.15311; the reading is ours).
    ///
    /// ```rhai
    /// let w = param(tensor([0.0]));
    /// let policy = velocity_field(|x, t, c| w - x);
    /// let b = batch(tensor([[1.0]]), (), terminal_cost(|x| x.sum(1)), #{ rng: rng(0) });
    /// leap_align(#{ grid: uniform(2) }).update(policy, policy, b).loss.item()    //=> 0.25
    /// ```
    #[rhai_fn(return_raw)]
    pub fn leap_align(context: NativeCallContext, options: Map) -> RhaiResultOf<Method> {
        let options = LeapOptions::parse("leap_align", options)?;
        let (text, rng) = (written("leap_align", options.changed()), options.rng.clone());
        let rollout = rolling(&context, options.grid, options.solver);
        let core = methods::LeapAlign { rollout, alpha: options.alpha, guidance: options.guidance };
        Ok(Method::new(Arc::new(core), text).drawing_from(rng))
    }

    /// VGG-Flow without its value network: the velocity is regressed on the base's and `eta(t)` times the gradient of the scaled reward at the data
    /// that it predicts (arXiv:2512.05116).
    ///
    /// ```rhai
    /// let w = param(tensor([0.0]));
    /// let base = velocity_field(|x, t, c| -x);
    /// let policy = velocity_field(|x, t, c| w - x);
    /// let b = batch(tensor([[1.0]]), (), terminal_cost(|x| -2 * x.sum(1)));
    /// vgg_flow(#{ grid: uniform(2), eta: |t| 1.0 }).update(policy, base, b).loss.item()    //=> 4.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn vgg_flow(context: NativeCallContext, options: Map) -> RhaiResultOf<Method> {
        Ok(VggOptions::parse("vgg_flow", options)?.method(&context))
    }

    /// Explores cheaply before a method trains (Sol-RL, arXiv:2604.06916): many noises of each prompt are seen over a few steps, and the method starts
    /// from the best and the worst.
    ///
    /// ```rhai
    /// let w = param(tensor([0.0]));
    /// let policy = velocity_field(|x, t, c| w - x);
    /// let b = batch(zeros([2, 1]), (), terminal_cost(|x| x.sum(1)), #{ per_prompt: 2, rng: rng(0) });
    /// let spread = |method| method.update(policy, policy, b).reward.std().item();
    /// let plain = forward_process(#{ grid: uniform(4), loss: dpo_loss(1) });
    /// spread.call(plain)                                                                    //=> 0.0
    /// spread.call(explore(plain, #{ candidates: 50, grid: uniform(3) })) > 0.5              //=> true
    /// explore(plain, #{ candidates: 1 }).update(policy, policy, b)                          //=> error: must be a multiple
    /// ```
    #[rhai_fn(return_raw)]
    pub fn explore(context: NativeCallContext, method: Method, options: Map) -> RhaiResultOf<Method> {
        let options = ExploreOptions::parse("explore", options)?;
        let text = written("explore", options.changed()).replacen('(', &format!("({method}, "), 1);
        let preview = rolling(&context, options.grid, options.solver);
        let core =
            methods::Explore { method: method.core(), preview, candidates: options.candidates, kept: options.kept };
        Ok(method.around(Arc::new(core), text))
    }

    /// A flow that is sampled with guidance by a reward: `v + weight (1 - t) / t grad r(x + (1 - t) v)`, the gradient through the network, and nothing at `t = 0`.
    ///
    /// Flow-NRG (arXiv:2501.13918) asks a reward trained on noisy latents; this one asks the reward of the data that the velocity predicts, which
    /// for Gaussian data and a linear reward is the same. A forward and an input gradient each time.
    ///
    /// ```rhai
    /// let judge = scripted_reward(|images, prompts| images.sum([1, 2, 3]));
    /// let pulled = reward_guided(velocity_field(|x, t, c| -x), judge, 2);
    /// rollout(pulled, ones([1, 3, 1, 1]), (), #{ grid: uniform(2) }).last.mean().item()    //=> 0.75
    /// ```
    #[rhai_fn(return_raw)]
    pub fn reward_guided(flow: Flow, reward: RewardModel, weight: f64) -> RhaiResultOf<Flow> {
        Ok(flow.with_velocity("guided by a reward", Arc::new(Pulled { flow: flow.clone(), reward, weight }))?)
    }

    /// Advantages `[n]` of rewards `[n]`, or of an array of them: how much better each sample is than the others of its prompt, of which `per_prompt` follow
    /// one another.
    ///
    /// A group whose rewards are all the same has advantages 0.
    ///
    /// ```rhai
    /// let r = tensor([1.0, 3.0, 5.0, 5.0]);
    /// advantages(r, 2, #{ scale: no_std() }).to_array()              //=> [-1.0, 1.0, 0.0, 0.0]
    /// advantages([r, r], 2, #{ scale: no_std(), weights: [1, 2], combine: sum_advantages() }).to_array()   //=> [-3.0, 3.0, 0.0, 0.0]
    /// advantages(r, 3)                                               //=> error: must divide the 4 rewards, got 3
    /// ```
    #[rhai_fn(return_raw)]
    pub fn advantages(rewards: Dynamic, per_prompt: i64, options: Map) -> RhaiResultOf<Tensor> {
        let options = AdvantageOptions::parse("advantages", options)?;
        let (given, group) = (several(rewards)?, count(per_prompt, "advantages: per_prompt")?);
        let weights = weights_of(options.weights, given.len())?;
        let numbers = given.iter().map(read).collect::<Result<Vec<_>>>()?;
        let advantage = Advantage { scale: options.scale, clip: options.clip };
        let weighted: Vec<_> = weights.into_iter().zip(numbers).collect();
        let found = methods::combined(&weighted, group, &advantage, options.combine)?;
        Ok(Tensor::new(found, given[0].device())?.to_dtype(given[0].dtype())?)
    }

    /// The rows of the best and the worst sample of each prompt in turn; a prompt whose rewards are all the same has none.
    ///
    /// ```rhai
    /// pairs(tensor([1.0, 3.0, 2.0, 5.0, 5.0, 5.0]), 3)   //=> [1, 0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn pairs(rewards: Tensor, per_prompt: i64) -> RhaiResultOf<Array> {
        Ok(rows(methods::pairs(&read(&rewards)?, count(per_prompt, "pairs: per_prompt")?)))
    }

    /// The rows of `keep` samples of each prompt, rising.
    ///
    /// ```rhai
    /// choose_rows(tensor([1.0, 3.0, 2.0, 5.0]), 4, 2, best_worst())   //=> [0, 3]
    /// choose_rows(tensor([1.0, 3.0, 2.0, 5.0]), 4, 2, best_only())    //=> [1, 3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn choose_rows(rewards: Tensor, per_prompt: i64, keep: i64, how: Kept) -> RhaiResultOf<Array> {
        let (group, keep) = (count(per_prompt, "choose_rows: per_prompt")?, count(keep, "choose_rows: keep")?);
        Ok(rows(methods::select(&read(&rewards)?, group, keep, how)?))
    }

    /// Step `k` of a path that kept its noise, as a policy sees it: its `velocity` there, the `log_ratio` of the step's likelihood to that under the flow
    /// that was rolled out, and the `divergence` of the two, `[batch]` each; with gradients.
    ///
    /// ```rhai
    /// let w = param(tensor([0.0]));
    /// let policy = velocity_field(|x, t, c| w - x);
    /// let path = rollout(policy, tensor([[1.0]]), (), #{ grid: uniform(4), solver: sde(constant(0.5)), rng: rng(0), noises: true });
    /// let step = path.transition(policy, 1);
    /// [step.log_ratio.item(), gradients(step.log_ratio.sum(), [w])[0].item() != 0.0]   //=> [0.0, true]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn transition(path: Trajectory, policy: Flow, k: i64, options: Map) -> RhaiResultOf<Map> {
        let options = TransitionOptions::parse("transition", options)?;
        let (k, path) = (count(k, "transition: step")?, &path.path);
        let velocity = policy.velocity(path.state(k)?, &path.time(k.min(path.steps()))?, &path.condition)?;
        let step = methods::Transition::new(path, k, &velocity, options.reduction)?;
        let parts =
            [("log_ratio", step.log_ratio(options.ratio)?), ("divergence", step.divergence()?), ("velocity", velocity)];
        Ok(parts.into_iter().map(|(name, x)| (name.into(), Dynamic::from(x))).collect())
    }

    /// Ends at drawn times, each on a line from new noise: `x`, `t` `[n]` and the `target` `x1 - x0`, for losses of one's own.
    ///
    /// ```rhai
    /// let n = noised(tensor([[1.0], [2.0]]), rng(0), #{ share: 2 });
    /// n.t[0].item() == n.t[1].item()                      //=> true
    /// n.target.to_array()[1][0] - n.target.to_array()[0][0]   //=> 1.0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn noised(x1: Tensor, rng: Stream, options: Map) -> RhaiResultOf<Map> {
        let NoisedOptions { share, law, latest } = NoisedOptions::parse("noised", options)?;
        let found = methods::noised(&x1, law, latest, share, &rng)?;
        let parts = [("x", found.x), ("t", found.t), ("target", found.target)];
        Ok(parts.into_iter().map(|(name, x)| (name.into(), Dynamic::from(x))).collect())
    }
}
