//! Chapter `policy_choice`: how methods that ask for a reward's value alone go about it, as values.

use super::option::FromScript;
use super::*;
use crate::options;
use amscript_align::policy::{
    self, Advantage, Combine, Divergence, Ends, Follow, Gamma, Kept, Normalise, Regression, RowWeight, Scale,
    StepWeight, Times, Trained, Trust,
};
use amscript_model::Flow;

options! {
    /// How the deviation of a group is taken.
    pub struct StdOptions {
        /// The squares are divided by the samples less this.
        ddof: usize = 1,
        /// Added to the deviation.
        floor: f64 = 1e-8,
    }
}

options! {
    /// How a window of steps moves.
    pub struct WindowOptions {
        /// Updates until it moves on by a step.
        every: usize = 25,
    }
}

options! {
    /// Where a window of steps is drawn.
    pub struct RandomWindowOptions {
        /// The share of the grid's steps that it lies in.
        within: f64 = 0.5,
    }
}

options! {
    /// When a copy begins to lag.
    pub struct RampOptions {
        /// Updates until then.
        start: usize = 0,
    }
}

options! {
    /// How advantages weigh ends.
    pub struct ByAdvantageOptions {
        /// What a reward about its group's mean is divided by.
        scale: Scale = Scale::Batch { floor: 1e-4 },
        /// The largest size of an advantage.
        clip: f64 = 1.0,
        /// What advantages are then divided by.
        divide: f64 = 1.0,
    }
}

/// What a policy is held near, as scripts give it.
#[derive(Clone, Default)]
pub struct Reference(pub policy::Reference);

impl FromScript for Reference {
    fn expected() -> String {
        "(), a flow, or how a copy of the policy follows, such as `copy_every(40)`".into()
    }
    fn from_script(value: Dynamic) -> Option<Self> {
        if value.is_unit() {
            return Some(Self::default());
        }
        let field = |flow: Flow| policy::Reference::Field(Arc::new(flow));
        let copy = || Follow::from_script(value.clone()).map(policy::Reference::Copy);
        Flow::from_script(value.clone()).map(field).or_else(copy).map(Self)
    }
    fn show(&self) -> String {
        match &self.0 {
            policy::Reference::Base => "()".into(),
            policy::Reference::Field(_) => "a flow".into(),
            policy::Reference::Copy(follow) => follow.show(),
        }
    }
}

choices! {
    /// Advantages, ratios and their bounds, steps, copies of the policy, losses at noised ends: what published methods differ in.
    mod policy_choice;

    choice Scale: "a scale of advantages such as `group_std()`", show_scale {
        /// Rewards about their group's mean are divided by the root mean square of all of the batch (AdvantageFlow).
        batch_rms = Scale::Rms,
        /// Rewards about their group's mean are advantages as they are.
        no_std = Scale::One,
        .. {
            Scale::Group { ddof: 1, floor: 1e-8 } => "group_std()";
            Scale::Group { ddof, floor } => "group_std(#{{ ddof: {ddof}, floor: {floor:?} }})";
            Scale::Batch { floor: 1e-4 } => "batch_std()";
            Scale::Batch { floor } => "batch_std({floor:?})";
            Scale::Running { last, .. } => "running({last})";
        }
    }

    choice Combine: "how rewards are combined, such as `sum_rewards()`", show_combine {
        /// The advantage of the weighted sum of rewards.
        sum_rewards = Combine::Rewards,
        /// The weighted sum of the rewards' advantages (MixGRPO).
        sum_advantages = Combine::Advantages,
        /// The same, brought to mean 0 and deviation 1 over the batch.
        gdpo = Combine::Gdpo,
    }

    choice Trust: "a bound on the ratio such as `clip(1e-4)`", show_trust {
        .. {
            Trust::Clip(e) => "clip({e:?})";
            Trust::PerDimension(e) => "clip_per_dimension({e:?})";
            Trust::Clamp(e) => "clamp_ratio({e:?})";
            Trust::Divergence(e) => "divergence({e:?})";
        }
    }

    choice Normalise: "a log-ratio such as `plain_ratio()`", show_normalise {
        /// The log-ratio of the two Gaussians, averaged over a sample's entries: `g z dv - g^2 dv^2 / 2`.
        plain_ratio = Normalise::Plain,
        /// `h (1 + rho) z dv`: as wide at every step, and without the bias of the square (GRPO-Guard, arXiv:2510.22319).
        guard_ratio = Normalise::Guard,
        /// Without the division by twice the variance, as Flow-CPS has it (arXiv:2509.05952).
        unscaled_ratio = Normalise::Unscaled,
    }

    choice Divergence: "a distance from the reference such as `velocity_kl()`", show_divergence {
        /// The mean square of the change of velocity, which depends on no grid or sampler.
        velocity_kl = Divergence::Velocity,
        /// That of the steps' means over twice the noise level, as Flow-GRPO has it.
        mean_kl = Divergence::Mean,
    }

    choice Trained: "trained steps such as `all_but_last()`", show_trained {
        /// All steps but the last, where the least change of velocity is a large ratio.
        all_but_last = Trained::All,
        .. {
            Trained::Share(share) => "share({share:?})";
            Trained::Window { size, every: 25 } => "window({size})";
            Trained::Window { size, every } => "window({size}, #{{ every: {every} }})";
            Trained::Random { size, within: 0.5 } => "random_window({size})";
            Trained::Random { size, within } => "random_window({size}, #{{ within: {within:?} }})";
            Trained::Only(steps) => "only_steps({steps:?})";
        }
    }

    choice StepWeight: "a weight of steps such as `equal_weights()`", show_weight {
        /// Every trained step counts the same.
        equal_weights = StepWeight::Equal,
        /// A step counts by one over its width (GRPO-Guard).
        per_width = StepWeight::PerWidth,
        /// A step counts in proportion to its noise, 1 on average over the grid (TempFlow-GRPO, arXiv:2508.04324).
        by_noise = StepWeight::Noise,
        .. {
            StepWeight::Given(weights) => "step_weights({weights:?})";
        }
    }

    choice Follow: "how a copy follows, such as `follow(0.9)`", show_follow {
        .. {
            Follow::Decay(decay) => "follow({decay:?})";
            Follow::Ramp { slope, most, start: 0 } => "ramp({slope:?}, {most:?})";
            Follow::Ramp { slope, most, start } => "ramp({slope:?}, {most:?}, #{{ start: {start} }})";
            Follow::Every(n) => "copy_every({n})";
        }
    }

    choice Ends: "whose ends, such as `policy_ends()`", show_ends {
        /// Ends are the policy's.
        policy_ends = Ends::Policy,
        /// Ends are those of a copy that follows the policy.
        old_ends = Ends::Old,
        /// Ends are the base's.
        base_ends = Ends::Base,
    }

    choice RowWeight: "a weight of ends such as `by_advantage()`", show_row_weight {
        /// An end counts by `exp(scale * reward)` over its mean, the scale that of the cost: the law tilted by the reward (RWR).
        by_tilt = RowWeight::Tilt,
        /// An end counts by `scale * reward`, which must be 0 or more, the scale that of the cost (RAM).
        by_reward = RowWeight::Reward,
        .. {
            RowWeight::Advantage(a, divide) =>
                "by_advantage(#{{ scale: {}, clip: {:?}, divide: {divide:?} }})", a.scale.show(), a.clip.unwrap_or(f64::INFINITY);
        }
    }

    choice Times: "a law of times such as `uniform_times()`", show_times {
        /// Times are uniform.
        uniform_times = Times::Uniform,
        /// Times are the logistic function of a normal number.
        logit_normal_times = Times::LogitNormal,
        .. {
            Times::Shifted(factor) => "shifted_times({factor:?})";
        }
    }

    choice Regression: "a loss at noised ends such as `quadratic_loss(1.1)`", show_regression {
        .. {
            Regression::Quadratic(Gamma::Number(gamma)) => "quadratic_loss({gamma:?})";
            Regression::Quadratic(Gamma::Less(b)) => "balanced_loss({b:?})";
            Regression::Nft { beta } => "nft_loss({beta:?})";
            Regression::Crd { beta } => "crd_loss({beta:?})";
            Regression::Dgpo { beta } => "dgpo_loss({beta:?})";
            Regression::Pairs { beta } => "dpo_loss({beta:?})";
        }
    }

    choice Kept: "which samples are kept, such as `best_worst()`", show_kept {
        /// Half the best and half the worst (Sol-RL, DanceGRPO).
        best_worst = Kept::BestWorst,
        /// Those whose rewards are furthest from the mean.
        far_from_mean = Kept::FarFromMean,
        /// The best.
        best_only = Kept::Best,
    }

    natives {
        /// Rewards about their group's mean are divided by the group's deviation.
        ///
        /// Flow-GRPO's own is `group_std(#{ ddof: 0, floor: 1e-4 })`. Groups that are nearly tied are blown up: take `batch_std()` for small rewards.
        ///
        /// ```rhai
        /// group_std()               //=> group_std()
        /// group_std(#{ ddof: 0 })   //=> group_std(#{ ddof: 0, floor: 1e-8 })
        /// ```
        #[rhai_fn(return_raw)]
        pub fn group_std(options: Map) -> RhaiResultOf<Scale> {
            let StdOptions { ddof, floor } = StdOptions::parse("group_std", options)?;
            Ok(Scale::Group { ddof, floor })
        }

        #[rhai_fn(name = "group_std", return_raw)]
        pub fn usual_group_std() -> RhaiResultOf<Scale> {
            group_std(Map::new())
        }

        /// Rewards about their group's mean are divided by the deviation of all rewards of the batch, plus `floor` (1e-4).
        ///
        /// ```rhai
        /// batch_std()   //=> batch_std()
        /// ```
        #[rhai_fn(name = "batch_std")]
        pub fn batch_std() -> Scale {
            Scale::Batch { floor: 1e-4 }
        }

        #[rhai_fn(name = "batch_std")]
        pub fn batch_std_above(floor: f64) -> Scale {
            Scale::Batch { floor }
        }

        /// Rewards are compared with the last `n` of their prompt, with those of the batch until there are so many (DDPO, arXiv:2305.13301).
        ///
        /// ```rhai
        /// running(16)   //=> running(16)
        /// ```
        #[rhai_fn(return_raw)]
        pub fn running(n: i64) -> RhaiResultOf<Scale> {
            let n: usize = option::convert(n.into(), "running")?;
            Ok(Scale::Running { last: n, least: n })
        }

        /// PPO's bound: a ratio more than `e` from 1 gains nothing more.
        ///
        /// Averaged log-ratios deviate by one over the root of a sample's numbers, so a range has a meaning with that number alone: see
        /// `clip_per_dimension`.
        ///
        /// ```rhai
        /// clip(1e-4)   //=> clip(0.0001)
        /// ```
        pub fn clip(e: f64) -> Trust {
            Trust::Clip(e)
        }

        /// The same at `256 e / sqrt(D)`, `D` the numbers of a sample: `e` for latents of 65536 numbers, as published ranges are for.
        ///
        /// ```rhai
        /// clip_per_dimension(1e-4)   //=> clip_per_dimension(0.0001)
        /// ```
        pub fn clip_per_dimension(e: f64) -> Trust {
            Trust::PerDimension(e)
        }

        /// A ratio more than `e` from 1 has no gradient, whichever way it has gone (DPOK, arXiv:2305.16381).
        ///
        /// ```rhai
        /// clamp_ratio(1e-4)   //=> clamp_ratio(0.0001)
        /// ```
        pub fn clamp_ratio(e: f64) -> Trust {
            Trust::Clamp(e)
        }

        /// A sample whose step has diverged by `most` counts no more in the direction that it has gone (FlowDPPO, arXiv:2606.11025).
        ///
        /// ```rhai
        /// divergence(1e-5)   //=> divergence(1e-5)
        /// ```
        pub fn divergence(most: f64) -> Trust {
            Trust::Divergence(most)
        }

        /// Noise at all steps but the last; a share of them, drawn for each update, is trained (DanceGRPO, arXiv:2505.07818).
        ///
        /// ```rhai
        /// share(0.6)   //=> share(0.6)
        /// ```
        pub fn share(part: f64) -> Trained {
            Trained::Share(part)
        }

        /// Noise at `size` steps alone, which are trained; the window moves on by a step every 25 updates (MixGRPO, arXiv:2507.21802).
        ///
        /// ```rhai
        /// window(4)                    //=> window(4)
        /// window(4, #{ every: 5 })     //=> window(4, #{ every: 5 })
        /// ```
        #[rhai_fn(return_raw)]
        pub fn window(size: i64, options: Map) -> RhaiResultOf<Trained> {
            let every = WindowOptions::parse("window", options)?.every;
            Ok(Trained::Window { size: option::convert(size.into(), "window")?, every })
        }

        /// Noise at `size` steps alone, which are trained; their start is drawn for each update from the first half (Flow-GRPO-Fast).
        ///
        /// ```rhai
        /// random_window(2)                      //=> random_window(2)
        /// random_window(1, #{ within: 1.0 })    //=> random_window(1, #{ within: 1.0 })
        /// ```
        #[rhai_fn(return_raw)]
        pub fn random_window(size: i64, options: Map) -> RhaiResultOf<Trained> {
            let within = RandomWindowOptions::parse("random_window", options)?.within;
            Ok(Trained::Random { size: option::convert(size.into(), "random_window")?, within })
        }

        /// Noise at these steps alone, which are trained.
        ///
        /// ```rhai
        /// only_steps([1, 2, 3])   //=> only_steps([1, 2, 3])
        /// ```
        #[rhai_fn(return_raw)]
        pub fn only_steps(steps: Array) -> RhaiResultOf<Trained> {
            Ok(Trained::Only(option::list(steps, "only_steps")?))
        }

        /// How much each step of the grid counts.
        ///
        /// ```rhai
        /// step_weights([1, 1, 2])   //=> step_weights([1.0, 1.0, 2.0])
        /// ```
        #[rhai_fn(return_raw)]
        pub fn step_weights(weights: Array) -> RhaiResultOf<StepWeight> {
            Ok(StepWeight::Given(option::list(weights, "step_weights")?))
        }

        /// A copy of the policy follows it at each update: `decay * copy + (1 - decay) * policy`.
        ///
        /// ```rhai
        /// follow(0.9)   //=> follow(0.9)
        /// ```
        pub fn follow(decay: f64) -> Follow {
            Follow::Decay(decay)
        }

        /// A copy of the policy lags more and more: its own weight is `slope` times the update from `start` on, `most` at most (DiffusionNFT).
        ///
        /// ```rhai
        /// ramp(0.001, 0.5)                       //=> ramp(0.001, 0.5)
        /// ramp(0.0075, 0.999, #{ start: 75 })    //=> ramp(0.0075, 0.999, #{ start: 75 })
        /// ```
        #[rhai_fn(return_raw)]
        pub fn ramp(slope: f64, most: f64, options: Map) -> RhaiResultOf<Follow> {
            Ok(Follow::Ramp { slope, most, start: RampOptions::parse("ramp", options)?.start })
        }

        /// A copy of the policy is made anew every `n` updates.
        ///
        /// ```rhai
        /// copy_every(40)   //=> copy_every(40)
        /// ```
        #[rhai_fn(return_raw)]
        pub fn copy_every(n: i64) -> RhaiResultOf<Follow> {
            Ok(Follow::Every(option::convert(n.into(), "copy_every")?))
        }

        /// Uniform noise levels `1 - t`, moved towards noise by a factor, as `shifted` moves a grid.
        ///
        /// ```rhai
        /// shifted_times(3)   //=> shifted_times(3.0)
        /// ```
        pub fn shifted_times(factor: f64) -> Times {
            Times::Shifted(factor)
        }

        /// An end counts by its advantage, within `clip` and divided by `divide`.
        ///
        /// ```rhai
        /// by_advantage()   //=> by_advantage(#{ scale: batch_std(), clip: 1.0, divide: 1.0 })
        /// ```
        #[rhai_fn(return_raw)]
        pub fn by_advantage(options: Map) -> RhaiResultOf<RowWeight> {
            let ByAdvantageOptions { scale, clip, divide } = ByAdvantageOptions::parse("by_advantage", options)?;
            Ok(RowWeight::Advantage(Advantage { scale, clip: Some(clip) }, divide))
        }

        #[rhai_fn(name = "by_advantage", return_raw)]
        pub fn by_usual_advantage() -> RhaiResultOf<RowWeight> {
            by_advantage(Map::new())
        }

        /// `a |v - u|^2 + gamma |v - v_old|^2` for an end of weight `a`: AdvantageFlow, AWM; with 0 RWR and RAM.
        ///
        /// The least value exists where `a + gamma` and the weight of the reference are above 0 together, which is checked.
        ///
        /// ```rhai
        /// quadratic_loss(1.1)   //=> quadratic_loss(1.1)
        /// ```
        pub fn quadratic_loss(gamma: f64) -> Regression {
            Regression::Quadratic(Gamma::Number(gamma))
        }

        /// The same with `gamma = b - a`: DiffusionNFT without its adaptive weights, `b` its beta.
        ///
        /// ```rhai
        /// balanced_loss(1)   //=> balanced_loss(1.0)
        /// ```
        pub fn balanced_loss(b: f64) -> Regression {
            Regression::Quadratic(Gamma::Less(b))
        }

        /// DiffusionNFT's loss as published (arXiv:2509.16117).
        ///
        /// ```rhai
        /// nft_loss(1)   //=> nft_loss(1.0)
        /// ```
        pub fn nft_loss(beta: f64) -> Regression {
            Regression::Nft { beta }
        }

        /// CRD's loss (arXiv:2603.14128): the reward that the change of error implies is regressed on the advantage.
        ///
        /// ```rhai
        /// crd_loss(1)   //=> crd_loss(1.0)
        /// ```
        pub fn crd_loss(beta: f64) -> Regression {
            Regression::Crd { beta }
        }

        /// DGPO's loss (arXiv:2510.08425): the preference of the group as a whole.
        ///
        /// ```rhai
        /// dgpo_loss(10)   //=> dgpo_loss(10.0)
        /// ```
        pub fn dgpo_loss(beta: f64) -> Regression {
            Regression::Dgpo { beta }
        }

        /// Diffusion-DPO's loss (arXiv:2311.12908) of the best and the worst sample of each prompt.
        ///
        /// It multiplies mean squared errors, so a published beta is for errors of the published size.
        ///
        /// ```rhai
        /// dpo_loss(100)   //=> dpo_loss(100.0)
        /// ```
        pub fn dpo_loss(beta: f64) -> Regression {
            Regression::Pairs { beta }
        }
    }
}
