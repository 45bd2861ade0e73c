//! Exponential moving average of parameters.

use super::Params;
use super::param::overwrite;
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::Tensor;

/// Averages of trainable tensors: `average <- decay * average + (1 - decay) * value` at each update.
#[derive(Clone)]
pub struct Ema {
    decay: f64,
    params: Params,
    averages: Vec<Tensor>,
}

impl Ema {
    /// Starts from the values that the parameters have now.
    pub fn new(params: Params, decay: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&decay) {
            bail!(Value, "ema: the decay must lie in [0, 1), got {decay}");
        }
        let averages = params.iter().map(|(_, v)| v.variable());
        let averages = averages.collect::<Result<_>>()?;
        Ok(Self { decay, params, averages })
    }

    /// Takes one step of the average towards the present values.
    pub fn update(&self) -> Result<()> {
        for ((_, var), average) in self.params.iter().zip(&self.averages) {
            let old = average.constant();
            average.set(&((&old * self.decay)? + (var.constant() * (1.0 - self.decay))?)?)?;
        }
        Ok(())
    }

    /// Copies of the averages, by parameter name.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let entries = self.params.iter().zip(&self.averages);
        entries.map(|((name, _), a)| Ok((name.to_string(), a.constant().copy()?))).collect()
    }

    /// Takes up a stored state.
    pub fn load_state(&self, mut tensor: impl FnMut(&str) -> Option<Tensor>) -> Result<()> {
        for ((name, _), average) in self.params.iter().zip(&self.averages) {
            overwrite(average, tensor(name), name)?;
        }
        Ok(())
    }

    /// Exchanges parameters and averages: once to evaluate with the averages, again to go on training.
    pub fn swap(&self) -> Result<()> {
        for ((_, var), average) in self.params.iter().zip(&self.averages) {
            let value = var.constant().copy()?;
            var.set(average)?;
            average.set(&value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_tensor::Device;

    #[test]
    fn average_follows_the_geometric_series() {
        let var = Tensor::new(&[0f64], &Device::Cpu).unwrap().variable().unwrap();
        let params = Params::new([("w".to_string(), var.clone())]).unwrap();
        let ema = Ema::new(params, 0.9).unwrap();
        var.set(&Tensor::new(&[1f64], &Device::Cpu).unwrap()).unwrap();
        for _ in 0..5 {
            ema.update().unwrap();
        }
        let state = ema.state().unwrap();
        assert!((state[0].1.to_vec1::<f64>().unwrap()[0] - (1.0 - 0.9f64.powi(5))).abs() < 1e-12);
        ema.swap().unwrap();
        assert!((var.to_vec1::<f64>().unwrap()[0] - (1.0 - 0.9f64.powi(5))).abs() < 1e-12);
        ema.swap().unwrap();
        assert_eq!(var.to_vec1::<f64>().unwrap()[0], 1.0);
    }
}
