//! Checks of numbers that are on a device: to read them is to wait for it. On the processor they are made at once; elsewhere they are put off to
//! the end of the update that asks for them, and read together.

use super::sample::sum_per_sample;
use super::{DType, Tensor};
use amscript_base::context::kept;
use amscript_base::error::Result;

type Requirement = Box<dyn FnOnce(&[f64]) -> Result<()>>;

/// What a thread keeps of its context.
#[derive(Default)]
struct Checks {
    /// Those of the outermost [`deferred_checks`], in order.
    open: Option<Vec<(Tensor, Requirement)>>,
    reads: usize,
    later: bool,
}

/// Checks are put off until this is dropped, also by a panic.
struct Open;

impl Drop for Open {
    fn drop(&mut self) {
        kept(|checks: &mut Checks| checks.open = None);
    }
}

/// All numbers of a tensor, row by row; waits for its device.
pub fn read(x: &Tensor) -> Result<Vec<f64>> {
    kept(|checks: &mut Checks| checks.reads += 1);
    x.constant().flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

/// How often this thread has read numbers.
pub fn reads() -> usize {
    kept(|checks: &mut Checks| checks.reads)
}

/// `f` with the processor's checks put off like those of other devices.
pub fn as_on_a_device<T>(f: impl FnOnce() -> T) -> T {
    let before = kept(|checks: &mut Checks| std::mem::replace(&mut checks.later, true));
    let value = f();
    kept(|checks: &mut Checks| checks.later = before);
    value
}

/// Runs `f`; the checks put off in it are made at its end, with one read. The first that fails is the error, whatever came of it later.
pub fn deferred_checks<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    let outermost = kept(|checks: &mut Checks| match checks.open {
        Some(_) => false,
        None => {
            checks.open = Some(Vec::new());
            true
        }
    });
    if !outermost {
        return f();
    }
    let _open = Open;
    let value = f();
    settle_all(kept(|checks: &mut Checks| checks.open.take()).unwrap_or_default())?;
    value
}

fn settle_all(checks: Vec<(Tensor, Requirement)>) -> Result<()> {
    if checks.is_empty() {
        return Ok(());
    }
    let rows = checks.iter().map(|(x, _)| x.constant().flatten_all()?.to_dtype(DType::F64));
    let numbers = read(&Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)?;
    let mut rest = &numbers[..];
    for (x, requirement) in checks {
        let (own, after) = rest.split_at(x.elem_count());
        rest = after;
        requirement(own)?;
    }
    Ok(())
}

/// Has a few numbers `[n]` checked, at once or at the end of what runs [`deferred_checks`].
pub fn require(numbers: &Tensor, requirement: impl FnOnce(&[f64]) -> Result<()> + 'static) -> Result<()> {
    let numbers = numbers.constant().to_dtype(DType::F64)?;
    let requirement = kept(|checks: &mut Checks| {
        let waits = checks.later || !numbers.device().is_cpu();
        match checks.open.as_mut().filter(|_| waits) {
            Some(open) => {
                open.push((numbers.clone(), Box::new(requirement)));
                None
            }
            None => Some(requirement),
        }
    });
    match requirement {
        Some(requirement) => requirement(&read(&numbers)?),
        None => Ok(()),
    }
}

/// Refuses a tensor with NaN or infinity: `fault` gets the first sample that holds one, and makes the error.
pub fn require_finite(x: &Tensor, fault: impl FnOnce(usize) -> Result<()> + 'static) -> Result<()> {
    // x * 0 is 0 where x is finite and NaN elsewhere, so one sum per sample answers for all of it.
    let zeros = sum_per_sample(&(x.constant() * 0.0)?)?;
    require(&zeros, |zeros| zeros.iter().position(|z| z.is_nan()).map_or(Ok(()), fault))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use amscript_base::bail;

    fn check(values: [f32; 4]) -> Result<()> {
        let x = Tensor::new(&values, &Device::Cpu)?.reshape((2, 2))?;
        require_finite(&x, move |sample| bail!(Numeric, "sample {sample} of {values:?}"))
    }

    #[test]
    fn a_bad_sample_is_found() {
        assert!(check([f32::MAX, f32::MAX, -1.0, 0.0]).is_ok());
        assert!(check([1.0, 2.0, f32::NEG_INFINITY, 0.0]).unwrap_err().message.starts_with("sample 1"));
        assert!(check([f32::NAN, 2.0, 0.0, 0.0]).unwrap_err().message.starts_with("sample 0"));
    }

    #[test]
    fn numbers_of_any_shape_and_type_are_put_off_together() {
        let ask = |x: &Tensor, expected: f64| {
            require(x, move |numbers| match numbers == [expected] {
                true => Ok(()),
                false => bail!(Value, "got {numbers:?}"),
            })
        };
        let sum = |dtype| Tensor::ones((2, 2), dtype, &Device::Cpu)?.sum_all();
        let asked = |last| {
            as_on_a_device(|| {
                deferred_checks(|| {
                    check([0.0; 4])?;
                    ask(&sum(DType::F64)?, 4.0)?;
                    ask(&sum(DType::F32)?, last)
                })
            })
        };
        assert!(asked(4.0).is_ok());
        assert_eq!(asked(5.0).unwrap_err().message, "got [4.0]");
    }

    #[test]
    fn checks_put_off_are_read_once_and_the_first_fault_is_told() {
        let before = reads();
        let run = |third: f32| -> Result<()> {
            deferred_checks(|| {
                check([0.0; 4])?;
                deferred_checks(|| check([third, 0.0, 0.0, 0.0]))?;
                check([0.0, 0.0, 0.0, f32::NAN])?;
                bail!(Value, "what came of it")
            })
        };
        let told = |third| as_on_a_device(|| run(third).unwrap_err().message);
        assert!(told(f32::NAN).starts_with("sample 0") && told(1.0).starts_with("sample 1"));
        assert_eq!(reads() - before, 2);
        assert!(as_on_a_device(|| deferred_checks(|| check([0.0; 4]))).is_ok());
        assert!(run(f32::NAN).unwrap_err().message.starts_with("sample 0"), "at once on the processor");
        let panics = || deferred_checks::<()>(|| std::panic::resume_unwind(Box::new("left")));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert!(told(f32::NAN).starts_with("sample 0"), "a panic leaves nothing open");
    }
}
