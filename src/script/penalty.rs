//! Chapter `penalty`: control penalties and the controls they ask for.

use super::*;
use crate::{options, script_value};
use amscript_align::{self as solver, Adjoint, Norm, Regularizer};
use amscript_tensor::Tensor;
use std::fmt;

script_value!(Penalty, "a control penalty such as `power(4)`");

options! {
    /// Choices of the control target.
    pub struct TargetOptions {
        /// What the penalty takes as the size of a control.
        norm: Norm = Norm::Sample,
    }
}

/// A control penalty with the name it goes by.
#[derive(Clone)]
pub struct Penalty {
    penalty: Regularizer,
    name: String,
}

impl Penalty {
    pub fn core(&self) -> &Regularizer {
        &self.penalty
    }
}

impl Default for Penalty {
    fn default() -> Self {
        Self { penalty: Regularizer::quadratic(), name: "quadratic()".into() }
    }
}

impl fmt::Display for Penalty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Penalties `f` on the size of the control, and the optimal control under each.
#[export_module(manifest)]
pub mod penalty {
    use super::*;

    pub type Penalty = super::Penalty;

    /// The penalty `r^2 / 2` of plain adjoint matching.
    ///
    /// ```rhai
    /// control_target(tensor([[3.0, 4.0]]), quadratic()).to_array()   //=> [[-3.0, -4.0]]
    /// ```
    pub fn quadratic() -> Penalty {
        Penalty::default()
    }

    /// The penalty `r^p / p`: the larger `p`, the more evenly the control spreads over time and samples.
    ///
    /// ```rhai
    /// control_target(tensor([[0.0, 8.0]]), power(4)).to_array()   //=> [[-0.0, -2.0]]
    /// power(1)                                                    //=> error: must be above 1
    /// ```
    #[rhai_fn(return_raw)]
    pub fn power(p: f64) -> RhaiResultOf<Penalty> {
        Ok(Penalty { penalty: Regularizer::power(p)?, name: format!("power({p})") })
    }

    /// Any increasing, convex penalty of the norm of the control, as a closure.
    ///
    /// The closure gets a vector of norms and gives the penalty of each. Its derivative and the inverse of that are found
    /// numerically; where it does not increase or is not convex on the range met, that is an error.
    ///
    /// ```rhai
    /// let f = penalty(|r| r * r * r * r / 4);
    /// assert_close(control_target(tensor([[8.0]]), f).item(), -2, 1e-6);
    /// control_target(tensor([[8.0]]), penalty(|r| -r))   //=> error: f must be increasing
    /// ```
    pub fn penalty(context: NativeCallContext, closure: FnPtr) -> Penalty {
        let callback = Callback::new(&context, "penalty", closure);
        let f = move |r: &Tensor| callback.call::<Tensor>((r.clone(),));
        Penalty { penalty: Regularizer::Penalty(Arc::new(f)), name: "penalty(|r| ..)".into() }
    }

    /// The optimal controls for an adjoint under a penalty `f`: `-(f')^-1(|a|) a / |a|`, one for each active step.
    ///
    /// They are changes of the velocity. Where the path has noise `w = sigma^2` they are `sigma / (1 + rho)` times that of `sigma a`:
    /// `-G a` for the quadratic penalty.
    /// For one step's adjoint, a tensor `[batch, ..]`, it gives that step's control.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// let adjoint = lean_adjoint(base, path, tensor([[4.0]]));
    /// control_target(adjoint, quadratic()).map(|u| u.item())   //=> [-9.0, -6.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn control_target(adjoint: Adjoint, penalty: Penalty, options: Map) -> RhaiResultOf<Array> {
        let norm = TargetOptions::parse("control_target", options)?.norm;
        let targets = solver::control_target(&adjoint, &penalty.penalty, norm)?;
        Ok(targets.into_iter().map(Dynamic::from).collect())
    }

    #[rhai_fn(name = "control_target", return_raw)]
    pub fn control_target_of(adjoint: Tensor, penalty: Penalty, options: Map) -> RhaiResultOf<Tensor> {
        let norm = TargetOptions::parse("control_target", options)?.norm;
        Ok(penalty.penalty.controls_by(&[adjoint], norm)?.remove(0))
    }

    /// The mass of the control that an adjoint asks for at each of its steps: the step's width times the control's mean size.
    ///
    /// `adaptive` keeps the fewest last steps that hold a share of it, which `last_steps` counts.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// control_mass(lean_adjoint(base, path, tensor([[4.0]])), quadratic())   //=> [4.5, 3.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn control_mass(adjoint: Adjoint, penalty: Penalty, options: Map) -> RhaiResultOf<Array> {
        let norm = TargetOptions::parse("control_mass", options)?.norm;
        let masses = solver::control_mass(&adjoint, &penalty.penalty, norm)?;
        Ok(masses.into_iter().map(Dynamic::from).collect())
    }

    /// What control at each of an adjoint's steps adds to the objective: the step's width times the mean of `f*(|a|)`, `f*` the penalty's conjugate.
    ///
    /// `adaptive(share, #{ measure: objective() })` keeps the fewest last steps that hold a share of it.
    ///
    /// ```rhai
    /// let base = velocity_field(|x, t, c| x);
    /// let path = rollout(base, tensor([[1.0]]), (), #{ grid: uniform(2) });
    /// objective_mass(lean_adjoint(base, path, tensor([[4.0]])), quadratic())   //=> [20.25, 9.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn objective_mass(adjoint: Adjoint, penalty: Penalty, options: Map) -> RhaiResultOf<Array> {
        let norm = TargetOptions::parse("objective_mass", options)?.norm;
        let masses = solver::objective_mass(&adjoint, &penalty.penalty, norm)?;
        Ok(masses.into_iter().map(Dynamic::from).collect())
    }

    /// The penalty of controls of the given sizes.
    ///
    /// ```rhai
    /// power(4).of(tensor([2.0])).to_array()   //=> [4.0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn of(penalty: Penalty, sizes: Tensor) -> RhaiResultOf<Tensor> {
        Ok(penalty.penalty.value(&sizes)?)
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_penalty(penalty: &mut Penalty) -> String {
        penalty.to_string()
    }
}
