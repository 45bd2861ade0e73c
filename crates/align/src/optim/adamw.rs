//! AdamW (Loshchilov & Hutter, arXiv:1711.05101) with named, readable state and clipping by the global norm.

use super::param::{Params, fits, overwrite, present};
use super::schedule::Schedule;
use super::shard::{Owners, Stored};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::group::{Alone, Group};
use amscript_base::profile::phase;
use amscript_tensor::adamw::{AdamWStep, sums_of_squares};
use amscript_tensor::grad::gradients;
use amscript_tensor::{DType, Device, Tensor};
use std::sync::Arc;

/// Settings of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerOptions {
    pub rate: Schedule,
    /// Decay of the first and the second moment.
    pub betas: [f64; 2],
    pub epsilon: f64,
    pub weight_decay: f64,
    /// Refuse to start when a trainable tensor gets no gradient, or one that is zero.
    pub check: bool,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        let rate = Schedule::Constant { rate: 1e-3, warmup: None };
        Self { rate, betas: [0.9, 0.99], epsilon: 1e-8, weight_decay: 0.01, check: true }
    }
}

impl OptimizerOptions {
    /// The numbers of step `step`, counted from 0, with the gradient times `scale`.
    fn at(&self, step: usize, scale: f64) -> AdamWStep {
        let rate = self.rate.rate(step);
        let corrections = self.betas.map(|b| 1.0 - b.powf((step + 1) as f64));
        // The rate is also on the weight decay, as published code has it.
        let decay = 1.0 - rate * self.weight_decay;
        AdamWStep { rate, scale, betas: self.betas, corrections, epsilon: self.epsilon, decay }
    }
}

/// What happens to numbers that are NaN or infinite.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum NotFinite {
    /// An error that names the tensor.
    #[default]
    Stop,
    /// The update is left out; an error after so many in a row.
    Skip(usize),
    /// In a gradient, NaN counts as 0, and every entry as one of at most this size; elsewhere an error.
    Clip(f64),
}

impl NotFinite {
    /// Whether an error is passed over, after so many that were; the error where it is one too many.
    pub fn passes(self, error: &Error, before: usize) -> Result<bool> {
        match self {
            Self::Skip(most) if error.kind == Kind::Numeric && before < most => Ok(true),
            Self::Skip(most) if error.kind == Kind::Numeric => {
                let message = format!("{}; {most} updates in a row were left out before", error.message);
                Err(Error { message, ..error.clone() })
            }
            _ => Ok(false),
        }
    }
}

/// Choices of one step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepOptions {
    /// Longest gradient over all parameters; a longer one is scaled down to it.
    pub clip: Option<f64>,
    pub not_finite: NotFinite,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Whether it was left out, by [`NotFinite::Skip`].
    pub skipped: bool,
    /// Learning rate that the step used.
    pub rate: f64,
    /// Global gradient norm before clipping.
    pub norm: f64,
}

/// What the moments are called in a state, in the order in which they are kept.
const MOMENTS: [&str; 2] = ["first", "second"];

/// The optimizer: parameters, moments and the number of steps taken.
pub struct AdamW {
    params: Params,
    options: OptimizerOptions,
    owners: Owners,
    /// Of the parameters whose moments this rank keeps.
    moments: Vec<Option<[Tensor; 2]>>,
    step: usize,
    /// Steps that were left out in a row.
    skipped: usize,
}

impl AdamW {
    pub fn new(params: Params, options: OptimizerOptions) -> Result<Self> {
        Self::sharded(params, options, Arc::new(Alone))
    }

    /// One whose moments the ranks of a group share; all must step with the same gradients.
    pub fn sharded(params: Params, options: OptimizerOptions, group: Arc<dyn Group>) -> Result<Self> {
        if params.is_empty() {
            bail!(Value, "adamw: there must be a trainable tensor, got none";
                hint: "lora(..) makes a new LoRA, load_lora(path, #{{ trainable: true }}) trains a loaded one, trainable() all weights");
        }
        if options.betas.iter().any(|b| !(0.0..1.0).contains(b)) {
            bail!(Value, "adamw: betas must lie in [0, 1), got {:?}", options.betas);
        }
        if !(options.epsilon > 0.0 && options.weight_decay >= 0.0) {
            let (epsilon, decay) = (options.epsilon, options.weight_decay);
            bail!(Value, "adamw: epsilon must be above 0 and weight_decay at least 0, got {epsilon} and {decay}");
        }
        let owners = Owners::new(&params, group);
        let zeros = |value: &Tensor| value.zeros_like()?.variable();
        let moments = |(i, (_, value))| Ok(if owners.keeps(i) { Some([zeros(value)?, zeros(value)?]) } else { None });
        let moments = params.iter().enumerate().map(moments).collect::<Result<_>>()?;
        Ok(Self { params, options, owners, moments, step: 0, skipped: 0 })
    }

    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Steps taken so far.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// How many numbers the moments hold that this rank keeps.
    pub fn held(&self) -> usize {
        self.moments.iter().flatten().flatten().map(|moment| moment.elem_count()).sum()
    }

    /// Learning rate of the next step.
    pub fn rate(&self) -> f64 {
        self.options.rate.rate(self.step)
    }

    /// Differentiates `loss` and takes one step.
    pub fn step(&mut self, loss: &Tensor, options: &StepOptions) -> Result<StepReport> {
        let gradients = phase("backward", || self.gradients(loss))?;
        phase("optimizer", || self.apply(&gradients, options))
    }

    /// Gradients of `loss` for the parameters, in their order.
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<Tensor>> {
        let wanted = self.params.tensors();
        let error = match gradients(loss, &wanted) {
            Ok(gradients) => return Ok(gradients),
            Err(error) => error,
        };
        // Only on the way to an error: which tensors does the loss not reach?
        let unreached = (0..wanted.len()).filter(|&i| gradients(loss, &wanted[i..=i]).is_err());
        let names: Vec<&str> = unreached.map(|i| self.params.name(i)).collect();
        if names.is_empty() || names.len() == wanted.len() && error.kind != Kind::Numeric {
            return Err(error.within("step"));
        }
        bail!(Numeric, "step: every trainable tensor must get a gradient, got none for {}", list(&names))
    }

    /// Takes one step with given gradients; nothing is changed when one of them is refused.
    pub fn apply(&mut self, gradients: &[Tensor], options: &StepOptions) -> Result<StepReport> {
        let clipped = match options.not_finite {
            NotFinite::Clip(limit) => gradients.iter().map(|g| bounded(g, limit)).collect::<Result<_>>()?,
            _ => gradients.to_vec(),
        };
        let norms = match self.norms(&clipped) {
            Ok(norms) => norms,
            Err(error) if options.not_finite.passes(&error, self.skipped)? => {
                self.skipped += 1;
                return Ok(StepReport { skipped: true, rate: self.rate(), norm: f64::NAN });
            }
            Err(error) => return Err(error),
        };
        self.owners.same_gradients(self.step, &norms)?;
        let (gradients, clip) = (&clipped, options.clip);
        if self.options.check && self.step == 0 {
            self.check_start(&norms)?;
        }
        let norm = norms.iter().map(|n| n * n).sum::<f64>().sqrt();
        let scale = match clip {
            Some(limit) if limit.is_nan() || limit <= 0.0 => bail!(Value, "step: clip must be above 0, got {limit}"),
            Some(limit) if norm > limit => limit / norm,
            _ => 1.0,
        };
        let update = self.options.at(self.step, scale);
        for (((_, var), gradient), moments) in self.params.iter().zip(gradients).zip(&self.moments) {
            if let Some([first, second]) = moments {
                update.apply(var, gradient, first, second)?;
            }
        }
        self.owners.exchange(&self.params)?;
        self.step += 1;
        self.skipped = 0;
        Ok(StepReport { skipped: false, rate: update.rate, norm })
    }

    /// Norm of each gradient; one that is not finite is an error.
    fn norms(&self, gradients: &[Tensor]) -> Result<Vec<f64>> {
        if gradients.len() != self.params.len() {
            bail!(Shape, "step: there must be {} gradients, got {}", self.params.len(), gradients.len());
        }
        for ((name, var), gradient) in self.params.iter().zip(gradients) {
            if gradient.dims() != var.dims() {
                let (expected, got) = (var.dims(), gradient.dims());
                bail!(Shape, "step: the gradient of `{name}` must have shape {expected:?}, got {got:?}");
            }
        }
        let norms: Vec<f64> = sums_of_squares(gradients)?.into_iter().map(f64::sqrt).collect();
        if let Some(i) = norms.iter().position(|norm| !norm.is_finite()) {
            let (name, norm) = (self.params.name(i), norms[i]);
            bail!(Numeric, "step: the gradient of `{name}` must be finite, got {norm}"; hint: "lower the rate or the reward scale");
        }
        Ok(norms)
    }

    /// Every tensor must learn from the first step on; LoRA's A may not while its B is still zero.
    fn check_start(&self, norms: &[f64]) -> Result<()> {
        let mut idle = Vec::new();
        for (i, (name, _)) in self.params.iter().enumerate() {
            if norms[i] == 0.0 && !self.waits_for_partner(name, norms)? {
                idle.push(name);
            }
        }
        if !idle.is_empty() {
            let all = if idle.len() == norms.len() { "all of " } else { "" };
            bail!(
                Numeric,
                "step: every trainable tensor must get a gradient at the first step, got zero for {all}{}",
                list(&idle);
                hint: "check that the loss depends on them, or pass check: false to adamw"
            );
        }
        Ok(())
    }

    /// Whether `name` is the A of an adapter whose B is zero and has a gradient.
    fn waits_for_partner(&self, name: &str, norms: &[f64]) -> Result<bool> {
        let Some((head, tail)) = name.rsplit_once("lora_A") else { return Ok(false) };
        let partner = format!("{head}lora_B{tail}");
        for (i, (other, var)) in self.params.iter().enumerate() {
            if other == partner {
                return Ok(norms[i] > 0.0 && sums_of_squares(&[var.constant()])? == [0.0]);
            }
        }
        Ok(false)
    }

    /// Copies of everything a resume needs: `step`, and `first.<name>` and `second.<name>` of every parameter.
    pub fn state(&self) -> Result<Vec<(String, Stored)>> {
        let mut state = vec![("step".to_string(), Stored::Whole(Tensor::new(self.step as i64, &Device::Cpu)?))];
        for (at, prefix) in MOMENTS.iter().enumerate() {
            for (i, (name, value)) in self.params.iter().enumerate() {
                let own = self.moments[i].as_ref().map(|moments| moments[at].constant().copy()).transpose()?;
                state.push((format!("{prefix}.{name}"), self.owners.stored(i, value, own)));
            }
        }
        Ok(state)
    }

    /// Takes up a stored state; nothing is changed when a part of it is refused.
    pub fn load_state(&mut self, mut stored: impl FnMut(&str) -> Option<Stored>) -> Result<()> {
        let Stored::Whole(step) = present(stored("step"), "step")? else {
            bail!(Value, "load: `step` must be the same on all ranks, got one rank's");
        };
        let step = step.to_dtype(DType::I64)?.to_scalar::<i64>()? as usize;
        let mut found = Vec::new();
        // By every rank of all moments, so that what is refused is refused by all.
        for (at, prefix) in MOMENTS.iter().enumerate() {
            for (i, (name, value)) in self.params.iter().enumerate() {
                let name = format!("{prefix}.{name}");
                let moment = present(stored(&name), &name)?;
                fits(moment.dims(), value, &name)?;
                let moment = self.owners.taken(i, moment, &name)?;
                found.push((self.moments[i].as_ref().map(|own| &own[at]), moment, name));
            }
        }
        for (own, moment, name) in found {
            if let Some(own) = own {
                overwrite(own, moment, &name)?;
            }
        }
        self.step = step;
        Ok(())
    }
}

/// Entries of at most a size; NaN is 0.
fn bounded(gradient: &Tensor, limit: f64) -> Result<Tensor> {
    if limit.is_nan() || limit <= 0.0 {
        bail!(Value, "step: the bound of a gradient's entries must be above 0, got {limit}");
    }
    let known = gradient.constant();
    let number = known.eq(&known)?; // not so of NaN
    number.where_cond(&known, &known.zeros_like()?)?.clamp(-limit, limit)
}

/// The first few names, and how many more there are.
fn list(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(4).map(|n| format!("`{n}`")).collect();
    match names.len().saturating_sub(4) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::{constant_rate, cosine};
    use amscript_tensor::Rng;

    fn params(named: &[(&str, &[f64])]) -> Params {
        let make = |v: &[f64]| Tensor::new(v, &Device::Cpu).unwrap().variable().unwrap();
        Params::new(named.iter().map(|(n, v)| (n.to_string(), make(v)))).unwrap()
    }

    fn values(params: &Params, index: usize) -> Vec<f64> {
        params.tensors()[index].to_vec1().unwrap()
    }

    fn row(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn steps_match_the_update_equations() {
        let options = OptimizerOptions { rate: cosine(0.1, 10, 3).unwrap(), ..Default::default() };
        let p = params(&[("w", &[0.5, -2.0])]);
        let mut opt = AdamW::new(p.clone(), options).unwrap();
        let (mut x, mut m, mut v) = ([0.5f64, -2.0], [0.0; 2], [0.0; 2]);
        for k in 0..6 {
            let g = [1.0 + k as f64, -0.3];
            opt.apply(&[row(&g)], &StepOptions::default()).unwrap();
            let (rate, t) = (options.rate.rate(k), k as i32 + 1);
            for i in 0..2 {
                m[i] = 0.9 * m[i] + 0.1 * g[i];
                v[i] = 0.99 * v[i] + 0.01 * g[i] * g[i];
                let (mh, vh) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.99f64.powi(t)));
                x[i] -= rate * (0.01 * x[i] + mh / (vh.sqrt() + 1e-8));
            }
        }
        for (got, expected) in values(&p, 0).iter().zip(x) {
            assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        }
    }

    #[test]
    fn clipping_scales_the_global_norm() {
        let options = OptimizerOptions { weight_decay: 0.0, epsilon: 1e3, ..Default::default() };
        let change = |clip, factor: f64| {
            let p = params(&[("a", &[0.0]), ("b", &[0.0])]);
            let mut opt = AdamW::new(p.clone(), options).unwrap();
            let report = opt
                .apply(&[row(&[3.0 * factor]), row(&[4.0 * factor])], &StepOptions { clip, ..StepOptions::default() })
                .unwrap();
            assert!((report.norm - 5.0 * factor).abs() < 1e-12);
            values(&p, 1)[0]
        };
        assert!((change(Some(1.0), 1.0) / change(None, 0.2) - 1.0).abs() < 1e-12);
        assert_eq!(change(Some(9.0), 1.0), change(None, 1.0));
    }

    #[test]
    fn step_minimises_a_quadratic() {
        let p = params(&[("w", &[3.0])]);
        let rate = constant_rate(0.1).unwrap();
        let mut opt =
            AdamW::new(p.clone(), OptimizerOptions { rate, weight_decay: 0.0, ..Default::default() }).unwrap();
        for _ in 0..200 {
            let loss = (&p.tensors()[0] - 1.0).unwrap().sqr().unwrap().sum_all().unwrap();
            opt.step(&loss, &StepOptions::default()).unwrap();
        }
        assert!((values(&p, 0)[0] - 1.0).abs() < 1e-3, "{}", values(&p, 0)[0]);
    }

    #[test]
    fn resume_continues_to_the_same_bytes() {
        let mut rng = Rng::new(9);
        let g: Vec<Tensor> = (0..6).map(|_| rng.normal(&[40], DType::F32, &Device::Cpu).unwrap()).collect();
        let fresh = |x: &Tensor| {
            let p = Params::new([("w".to_string(), x.variable().unwrap())]).unwrap();
            AdamW::new(p, OptimizerOptions { rate: cosine(0.1, 6, 2).unwrap(), ..Default::default() }).unwrap()
        };
        let mut whole = fresh(&g[5].copy().unwrap());
        g.iter().for_each(|g| {
            whole.apply(std::slice::from_ref(g), &StepOptions::default()).unwrap();
        });
        let mut half = fresh(&g[5].copy().unwrap());
        g[..3].iter().for_each(|g| {
            half.apply(std::slice::from_ref(g), &StepOptions::default()).unwrap();
        });
        let mut rest = fresh(&half.params().tensors()[0].copy().unwrap().constant());
        let state: std::collections::HashMap<_, _> = half.state().unwrap().into_iter().collect();
        rest.load_state(|name| state.get(name).cloned()).unwrap();
        g[3..].iter().for_each(|g| {
            rest.apply(std::slice::from_ref(g), &StepOptions::default()).unwrap();
        });
        let bits = |o: &AdamW| o.params().tensors()[0].to_vec1::<f32>().unwrap();
        assert_eq!(bits(&whole), bits(&rest));
        assert_eq!(rest.steps(), 6);
    }

    #[test]
    fn the_first_step_names_tensors_that_do_not_learn() {
        let p = params(&[("x.lora_A", &[1.0]), ("x.lora_B", &[0.0]), ("y", &[1.0])]);
        let (zero, one) = (row(&[0.0]), row(&[1.0]));
        let refuse = |g: &[Tensor]| {
            let mut opt = AdamW::new(p.clone(), OptimizerOptions::default()).unwrap();
            opt.apply(g, &StepOptions::default()).map(|_| ()).map_err(|e| e.message)
        };
        let message = refuse(&[zero.clone(), one.clone(), zero.clone()]).unwrap_err();
        assert_eq!(message, "step: every trainable tensor must get a gradient at the first step, got zero for `y`");
        let message = refuse(&[zero.clone(), zero.clone(), one.clone()]).unwrap_err();
        assert!(message.ends_with("got zero for `x.lora_A`, `x.lora_B`"), "{message}");
        let message = refuse(&[zero.clone(), row(&[f64::NAN]), one.clone()]).unwrap_err();
        assert_eq!(message, "step: the gradient of `x.lora_B` must be finite, got NaN");
        assert_eq!(refuse(&[zero, one.clone(), one]), Ok(()));
    }

    #[test]
    fn a_loss_that_misses_a_tensor_names_it() {
        let p = params(&[("seen", &[1.0]), ("unseen", &[1.0])]);
        let mut opt = AdamW::new(p.clone(), OptimizerOptions::default()).unwrap();
        let loss = p.tensors()[0].sqr().unwrap().sum_all().unwrap();
        let message = opt.step(&loss, &StepOptions::default()).unwrap_err().message;
        assert_eq!(message, "step: every trainable tensor must get a gradient, got none for `unseen`");
    }
    #[test]
    fn numbers_that_go_wrong_stop_the_step_or_are_left_out_or_bounded() {
        let wrong = [row(&[f64::NAN, f64::INFINITY, 1.0])];
        let p = params(&[("w", &[0.0, 0.0, 0.0])]);
        let options = OptimizerOptions { weight_decay: 0.0, check: false, ..Default::default() };
        let mut opt = AdamW::new(p.clone(), options).unwrap();
        let at = |not_finite| StepOptions { clip: None, not_finite };
        assert!(opt.apply(&wrong, &at(NotFinite::Stop)).unwrap_err().message.contains("`w` must be finite"));
        for _ in 0..2 {
            assert!(opt.apply(&wrong, &at(NotFinite::Skip(2))).unwrap().skipped);
        }
        let error = opt.apply(&wrong, &at(NotFinite::Skip(2))).unwrap_err();
        assert!(error.message.contains("`w`") && error.message.contains("2 updates in a row"), "{error}");
        assert_eq!((opt.steps(), values(&p, 0)), (0, vec![0.0; 3]));
        let report = opt.apply(&wrong, &at(NotFinite::Clip(2.0))).unwrap();
        assert_eq!((report.skipped, report.norm, opt.steps()), (false, 5f64.sqrt(), 1));
        assert!(values(&p, 0)[0] == 0.0 && values(&p, 0)[1] < 0.0);
        assert!(opt.apply(&wrong, &at(NotFinite::Skip(1))).unwrap().skipped, "counted anew after a step");
        assert!(opt.apply(&wrong, &at(NotFinite::Clip(0.0))).is_err());
    }
}
