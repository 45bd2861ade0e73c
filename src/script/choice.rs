//! Chapter `choice`: how an update goes about it, as values.

use super::*;
use crate::align::{
    Adaptive, AdjointIndex, Criterion, EVERY, Norm, Reduction, Selection, Truncation, Units, last_steps,
};
use crate::{options, script_value};

script_value!(Truncation, "a truncation such as `last(3)`");
script_value!(AdjointIndex, "an adjoint index such as `same_step()`");
script_value!(Reduction, "a reduction such as `sum_errors()`");
script_value!(Units, "units such as `velocity_units()`");
script_value!(Criterion, "a criterion such as `squared()`");
script_value!(Norm, "the size of a control such as `sample_norm()`");
script_value!(Selection, "a choice of steps such as `all_steps()`");

options! {
    /// When the control is measured.
    pub struct AdaptiveOptions {
        /// Updates between measurements, the first of which comes with the first update.
        every: usize = EVERY,
    }
}

/// Choices that papers leave open or that methods differ in.
#[export_module(manifest)]
pub mod choice {
    use super::*;

    /// Only the last `k` steps are active.
    ///
    /// ```rhai
    /// last(3)   //=> last(3)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn last(k: i64) -> RhaiResultOf<Truncation> {
        Ok(Truncation::last(option::convert(k.into(), "last")?)?)
    }

    /// Every step is active.
    ///
    /// ```rhai
    /// full()   //=> full()
    /// ```
    pub fn full() -> Truncation {
        Truncation::Full
    }

    /// The fewest last steps are active that hold the share `mass` of the control, as measured over all steps.
    ///
    /// `adjoint_matching` measures it at its first update and every 25 updates after: the optimal control's mean size over the batch,
    /// times the step's width. Such an update carries the adjoint back over all steps.
    ///
    /// What it found is kept in the `state` of the batch; an update without one measures.
    ///
    /// ```rhai
    /// let some = adaptive(0.5, #{ every: 10 });
    /// let base = velocity_field(|x, t, c| x);
    /// let cost = terminal_cost(|x| x.sum(1));
    /// let update = adjoint_matching(base, base, tensor([[1.0]]), (), cost, #{ grid: uniform(10), truncate: some });
    /// update.adjoint.values.len()   //=> 7
    /// adaptive(2)                   //=> error: must lie in (0, 1]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn adaptive(mass: f64, options: Map) -> RhaiResultOf<Truncation> {
        let every = AdaptiveOptions::parse("adaptive", options)?.every;
        Ok(Truncation::Adaptive(Adaptive::new(mass, every)?))
    }

    /// The number of active steps of `last(k)`; `()` for those that depend on the grid or on what is measured.
    ///
    /// ```rhai
    /// [last(3).active, full().active, adaptive(0.5).active]   //=> [3, (), ()]
    /// ```
    #[rhai_fn(get = "active", pure)]
    pub fn active(truncation: &mut Truncation) -> Dynamic {
        match truncation {
            Truncation::Last(k) => Dynamic::from(*k as i64),
            _ => Dynamic::UNIT,
        }
    }

    /// How many last steps hold the share `mass` of a control, given its mass at every step.
    ///
    /// ```rhai
    /// last_steps([1, 1, 2, 4], 0.75)   //=> 2
    /// ```
    #[rhai_fn(name = "last_steps", return_raw)]
    pub fn steps_of(masses: Array, mass: f64) -> RhaiResultOf<i64> {
        Ok(last_steps(&option::list::<f64>(masses, "last_steps")?, mass) as i64)
    }

    /// All active steps enter the loss.
    ///
    /// ```rhai
    /// all_steps()   //=> all_steps()
    /// ```
    pub fn all_steps() -> Selection {
        Selection::All
    }

    /// The last few active steps and so many others, drawn for each update, enter the loss (arXiv:2409.08861).
    ///
    /// ```rhai
    /// some_steps(10, 10)   //=> some_steps(10, 10)
    /// ```
    #[rhai_fn(return_raw)]
    pub fn some_steps(last: i64, others: i64) -> RhaiResultOf<Selection> {
        let number = |n: i64| option::convert(n.into(), "some_steps");
        Ok(Selection::Some { last: number(last)?, others: number(others)? })
    }

    /// The target of step `k` comes from the adjoint at step `k`, as the papers write it.
    ///
    /// ```rhai
    /// same_step()   //=> same_step()
    /// ```
    pub fn same_step() -> AdjointIndex {
        AdjointIndex::Same
    }

    /// The target of step `k` comes from the adjoint at step `k + 1`: the exact gradient of the discrete problem.
    ///
    /// ```rhai
    /// next_step()   //=> next_step()
    /// ```
    pub fn next_step() -> AdjointIndex {
        AdjointIndex::Next
    }

    /// Errors are summed over active steps and latent entries, as in the paper.
    ///
    /// ```rhai
    /// sum_errors()   //=> sum_errors()
    /// ```
    pub fn sum_errors() -> Reduction {
        Reduction::Sum
    }

    /// Errors are averaged over active steps and latent entries.
    ///
    /// ```rhai
    /// mean_errors()   //=> mean_errors()
    /// ```
    pub fn mean_errors() -> Reduction {
        Reduction::Mean
    }

    /// Errors are those of the velocity, `|v_policy - v_base + G a|^2`.
    ///
    /// ```rhai
    /// velocity_units()   //=> velocity_units()
    /// ```
    pub fn velocity_units() -> Units {
        Units::Velocity
    }

    /// Errors are those of the control `u = (1 + rho) / sigma (v_policy - v_base)`, as stochastic adjoint matching writes them.
    ///
    /// ```rhai
    /// control_units()   //=> control_units()
    /// ```
    pub fn control_units() -> Units {
        Units::Control
    }

    /// Squared distance from the control target where its mean is right (no noise, or the quadratic penalty), else Fenchel's.
    ///
    /// ```rhai
    /// fitting()   //=> fitting()
    /// ```
    pub fn fitting() -> Criterion {
        Criterion::Fitting
    }

    /// The squared distance from the control target.
    ///
    /// ```rhai
    /// squared()   //=> squared()
    /// ```
    pub fn squared() -> Criterion {
        Criterion::Squared
    }

    /// `f(|u|) + f*(sigma |a|) + sigma a . u`: exact for every penalty `f` under noise, where the adjoint of a state is random.
    ///
    /// ```rhai
    /// fenchel()   //=> fenchel()
    /// ```
    pub fn fenchel() -> Criterion {
        Criterion::Fenchel
    }

    /// The size of a control is the Euclidean norm of a sample's latent.
    ///
    /// ```rhai
    /// sample_norm()   //=> sample_norm()
    /// ```
    pub fn sample_norm() -> Norm {
        Norm::Sample
    }

    /// The size of a control is the root of the mean square of a sample's latent.
    ///
    /// ```rhai
    /// let u = control_target(tensor([[2.0, -2.0]]), power(3), #{ norm: rms_norm() });
    /// assert_close(u, tensor([[-1.41421, 1.41421]]), 1e-5);
    /// ```
    pub fn rms_norm() -> Norm {
        Norm::Rms
    }

    /// Every entry of the latent is penalised on its own.
    ///
    /// ```rhai
    /// control_target(tensor([[8.0, -1.0]]), power(4), #{ norm: entry_norm() }).to_array()   //=> [[-2.0, 1.0]]
    /// ```
    pub fn entry_norm() -> Norm {
        Norm::Entry
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_truncation(truncation: &mut Truncation) -> String {
        truncation.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_index(index: &mut AdjointIndex) -> String {
        index.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_reduction(reduction: &mut Reduction) -> String {
        reduction.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_units(units: &mut Units) -> String {
        units.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_criterion(criterion: &mut Criterion) -> String {
        criterion.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_norm(norm: &mut Norm) -> String {
        norm.to_string()
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_selection(selection: &mut Selection) -> String {
        selection.to_string()
    }
}
