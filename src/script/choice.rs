//! Chapter `choice`: how an update goes about it, as values.

use super::*;
use crate::options;
use amscript_align::{
    Adaptive, AdjointIndex, EVERY, Loss, Measure, Norm, Reduction, Scheme, Selection, Truncation, Units, last_steps,
};

options! {
    /// When the control is measured.
    pub struct AdaptiveOptions {
        /// Updates between measurements, the first of which comes with the first update.
        every: usize = EVERY,
        /// What the share is of: the `control()`, or the `objective()` that it attains.
        measure: Measure = Measure::Control,
    }
}

/// Those options of an adaptive truncation that are not as usual, as a script writes them.
fn changed(a: &Adaptive) -> String {
    let every = (a.every != EVERY).then(|| format!("every: {}", a.every));
    let measure = (a.measure != Measure::Control).then(|| format!("measure: {}", option::FromScript::show(&a.measure)));
    let all: Vec<String> = every.into_iter().chain(measure).collect();
    if all.is_empty() { String::new() } else { format!(", #{{ {} }}", all.join(", ")) }
}

/// Kinds of choices, each with what is expected in its place, and a chapter with them.
///
/// A choice without parameters is declared once, `sum_errors = Reduction::Sum`: its doc line, the function that makes it, how it prints, and
/// its example. One with parameters has a function of its own under `natives` and prints as what stands behind `..` says.
macro_rules! choices {
    (
        $(#[doc = $about:literal])*
        mod $chapter:ident;
        $(
            choice $kind:ty: $expected:literal, $show:ident {
                $( $(#[doc = $doc:literal])* $name:ident = $variant:path, )*
                $( .. { $( $pattern:pat $(if $guard:expr)? => $text:literal $(, $argument:expr)*; )* } )?
            }
        )*
        natives { $($natives:tt)* }
    ) => {
        $(
            impl option::FromScript for $kind {
                fn expected() -> String {
                    $expected.into()
                }
                fn from_script(value: Dynamic) -> Option<Self> {
                    value.flatten().try_cast()
                }
                fn show(&self) -> String {
                    match self {
                        $( $variant => concat!(stringify!($name), "()").into(), )*
                        $($( $pattern $(if $guard)? => format!($text $(, $argument)*), )*)?
                    }
                }
            }
        )*

        /// The functions that make a choice without parameters, which prints as the call that makes it.
        pub const PLAIN: &[&str] = &[$($( stringify!($name), )*)*];

        $(#[doc = $about])*
        #[export_module(manifest)]
        pub mod $chapter {
            use super::*;

            $($(
                $(#[doc = $doc])*
                pub fn $name() -> $kind {
                    $variant
                }
            )*)*

            $($natives)*

            $(
                #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
                pub fn $show(choice: &mut $kind) -> String {
                    option::FromScript::show(choice)
                }
            )*
        }
    };
}

choices! {
    /// Choices that papers leave open or that methods differ in.
    mod choice;

    choice Truncation: "a truncation such as `last(3)`", show_truncation {
        /// Every step is active.
        full = Truncation::Full,
        .. {
            Truncation::Last(k) => "last({k})";
            Truncation::Adaptive(a) => "adaptive({}{})", a.mass, changed(a);
        }
    }

    choice Measure: "a measure such as `control()`", show_measure {
        /// The share is that of the control: `h |u_k|` of each step.
        control = Measure::Control,
        /// The share is that of the objective: `h f*(|a_k|)` of each step, with the penalty's conjugate `f*`.
        ///
        /// Where the adjoint hardly depends on the control, which holds to first order in the reward scale, the reward that a truncation gains has
        /// the same share (docs/method.md).
        objective = Measure::Objective,
    }

    choice Scheme: "a resampling scheme such as `systematic()`", show_scheme {
        /// Independent draws.
        multinomial = Scheme::Multinomial,
        /// The whole parts of the expected copies, then independent draws.
        residual = Scheme::Residual,
        /// One draw in each of equal parts of [0, 1].
        stratified = Scheme::Stratified,
        /// The same draw in each of these parts.
        systematic = Scheme::Systematic,
        /// The whole parts of the expected copies, or one more: Srinivasan's process (Gerber, Chopin and Whiteley, 2019).
        ssp = Scheme::Ssp,
    }

    choice Selection: "a choice of steps such as `all_steps()`", show_selection {
        /// All active steps enter the loss.
        all_steps = Selection::All,
        .. {
            Selection::Some { last, others } => "random_steps({last}, {others})";
        }
    }

    choice AdjointIndex: "an adjoint index such as `paper_adjoint()`", show_index {
        /// The target of step `k` comes from the adjoint at step `k`, as the papers write it.
        paper_adjoint = AdjointIndex::Same,
        /// The target of step `k` comes from the adjoint at step `k + 1`: the exact gradient of the discrete problem.
        discrete_adjoint = AdjointIndex::Next,
    }

    choice Reduction: "a reduction such as `sum_errors()`", show_reduction {
        /// Errors are summed over active steps and latent entries, as in the paper.
        sum_errors = Reduction::Sum,
        /// Errors are averaged over active steps and latent entries.
        mean_errors = Reduction::Mean,
    }

    choice Units: "units such as `velocity_units()`", show_units {
        /// Errors are those of the velocity, `|v_policy - v_base + G a|^2`.
        velocity_units = Units::Velocity,
        /// Errors are those of the control `u = (1 + rho) / sigma (v_policy - v_base)`, as stochastic adjoint matching writes them.
        control_units = Units::Control,
    }

    choice Loss: "a loss such as `squared()`", show_loss {
        /// Squared distance from the control target where its mean is right (no noise, or the quadratic penalty), else that of Fenchel and Young.
        automatic = Loss::Automatic,
        /// The squared distance from the control target.
        squared = Loss::Squared,
        /// `f(|u|) + f*(sigma |a|) + sigma a . u`: exact for every penalty `f` under noise, where the adjoint of a state is random.
        fenchel_young = Loss::FenchelYoung,
    }

    choice Norm: "the size of a control such as `sample_norm()`", show_norm {
        /// The size of a control is the Euclidean norm of a sample's latent.
        sample_norm = Norm::Sample,
        /// The size of a control is the root of the mean square of a sample's latent.
        ///
        /// ```rhai
        /// let u = control_target(tensor([[2.0, -2.0]]), power(3), #{ norm: rms_norm() });
        /// assert_close(u, tensor([[-1.41421, 1.41421]]), 1e-5);
        /// ```
        rms_norm = Norm::Rms,
        /// Every entry of the latent is penalised on its own.
        ///
        /// ```rhai
        /// control_target(tensor([[8.0, -1.0]]), power(4), #{ norm: entry_norm() }).to_array()   //=> [[-2.0, 1.0]]
        /// ```
        entry_norm = Norm::Entry,
    }

    natives {
        /// Only the last `k` steps are active.
        ///
        /// ```rhai
        /// last(3)   //=> last(3)
        /// ```
        #[rhai_fn(return_raw)]
        pub fn last(k: i64) -> RhaiResultOf<Truncation> {
            Ok(Truncation::last(option::convert(k.into(), "last")?)?)
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
        /// adaptive(0.5, #{ measure: objective() })   //=> adaptive(0.5, #{ measure: objective() })
        /// adaptive(2)                   //=> error: must lie in (0, 1]
        /// ```
        #[rhai_fn(return_raw)]
        pub fn adaptive(mass: f64, options: Map) -> RhaiResultOf<Truncation> {
            let AdaptiveOptions { every, measure } = AdaptiveOptions::parse("adaptive", options)?;
            Ok(Truncation::Adaptive(Adaptive { measure, ..Adaptive::new(mass, every)? }))
        }

        /// The number of active steps of `last(k)`; `()` for those that depend on the grid or on what is measured.
        ///
        /// ```rhai
        /// [last(3).active, full().active, adaptive(0.5).active]   //=> [3, (), ()]
        /// ```
        #[rhai_fn(get = "active")]
        pub fn active(truncation: Truncation) -> Dynamic {
            match truncation {
                Truncation::Last(k) => Dynamic::from(k as i64),
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

        /// The last few active steps and so many others, drawn for each update, enter the loss (arXiv:2409.08861).
        ///
        /// ```rhai
        /// random_steps(10, 10)   //=> random_steps(10, 10)
        /// ```
        #[rhai_fn(return_raw)]
        pub fn random_steps(last: i64, others: i64) -> RhaiResultOf<Selection> {
            let number = |n: i64| option::convert(n.into(), "random_steps");
            Ok(Selection::Some { last: number(last)?, others: number(others)? })
        }
    }
}
