//! Advantages: how much better a sample is than the others of its prompt. Samples of a prompt follow one another, `group` of each.

use crate::{Batch, MethodState};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_tensor::check::read;
use amscript_tensor::{DType, Device, Tensor};

/// What a centred reward is divided by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// The group's deviation, its sum over `n - ddof`, plus `floor` (Flow-GRPO: 0 and 1e-4; DanceGRPO, MixGRPO: 1 and 1e-8).
    Group { ddof: usize, floor: f64 },
    /// The deviation of all rewards of the batch, plus `floor` (Flow-GRPO's global one).
    Batch { floor: f64 },
    /// The root mean square of all centred rewards of the batch (AdvantageFlow).
    Rms,
    /// Nothing.
    One,
    /// Mean and deviation of the prompt's last `last` rewards, of the batch where there are fewer than `least` (DDPO).
    Running { last: usize, least: usize },
}

/// How advantages come of rewards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Advantage {
    pub scale: Scale,
    /// The largest size.
    pub clip: Option<f64>,
}

/// How several rewards become one advantage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Combine {
    /// The weighted sum of rewards, then the advantage.
    #[default]
    Rewards,
    /// The weighted sum of each reward's advantage (MixGRPO).
    Advantages,
    /// The same, brought to mean 0 and deviation 1 over the batch (GDPO).
    Gdpo,
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

fn deviation(x: &[f64], ddof: usize) -> f64 {
    let m = mean(x);
    (x.iter().map(|v| (v - m).powi(2)).sum::<f64>() / x.len().saturating_sub(ddof).max(1) as f64).sqrt()
}

/// Rewards about their group's mean; a constant group is 0 exactly.
fn centred(rewards: &[f64], group: usize) -> Vec<f64> {
    let about = |rows: &[f64]| {
        let (m, same) = (mean(rows), rows.iter().all(|r| *r == rows[0]));
        rows.iter().map(|r| if same { 0.0 } else { r - m }).collect::<Vec<_>>()
    };
    rewards.chunks(group).flat_map(about).collect()
}

impl Advantage {
    /// Whether samples of a prompt are compared with one another.
    pub fn groups(&self) -> bool {
        !matches!(self.scale, Scale::Running { .. })
    }

    /// Advantages of a batch's rewards, which may be a part: the other parts' are asked for.
    pub fn of_batch(&self, rewards: &[f64], batch: &Batch, state: &mut MethodState) -> Result<Vec<f64>> {
        let prompts = if self.groups() { Vec::new() } else { batch.whole_text()? };
        Ok(batch.own(self.of(&batch.whole(rewards)?, batch.per_prompt, &prompts, state)?))
    }

    /// Advantages of rewards of the batch. What [`Scale::Running`] remembers by prompt is in the state.
    pub fn of(&self, rewards: &[f64], group: usize, prompts: &[String], state: &mut MethodState) -> Result<Vec<f64>> {
        check(rewards, group, self.groups())?;
        let about = centred(rewards, group);
        let by = |scale: f64| about.iter().map(|a| if *a == 0.0 { 0.0 } else { a / scale }).collect();
        let advantages: Vec<f64> = match self.scale {
            Scale::Group { ddof, floor } => {
                let scales = rewards.chunks(group).map(|rows| deviation(rows, ddof) + floor);
                let scales = scales.flat_map(|scale| std::iter::repeat_n(scale, group));
                about.iter().zip(scales).map(|(a, scale)| if *a == 0.0 { 0.0 } else { a / scale }).collect()
            }
            Scale::Batch { floor } => by(deviation(rewards, 0) + floor),
            Scale::Rms => by(mean(&about.iter().map(|a| a * a).collect::<Vec<_>>()).sqrt()),
            Scale::One => about,
            Scale::Running { last, least } => running(rewards, prompts, [last, least], state)?,
        };
        let most = self.clip.unwrap_or(f64::INFINITY);
        Ok(advantages.into_iter().map(|a| a.clamp(-most, most)).collect())
    }
}

fn check(rewards: &[f64], group: usize, compared: bool) -> Result<()> {
    if group == 0 || !rewards.len().is_multiple_of(group) {
        bail!(Value, "advantages: the samples of a prompt must divide the {} rewards, got {group}", rewards.len());
    }
    if compared && group < 2 {
        bail!(
            Value, "advantages: there must be several samples of each prompt, got {group}";
            hint: "draw groups, such as `per_prompt: 8`; `running(16)` compares with earlier rewards instead"
        );
    }
    Ok(())
}

/// DDPO's statistics per prompt.
fn running(
    rewards: &[f64],
    prompts: &[String],
    [last, least]: [usize; 2],
    state: &mut MethodState,
) -> Result<Vec<f64>> {
    if prompts.len() != rewards.len() {
        bail!(
            Value, "advantages: running() needs the prompt of each sample, got {} for {} samples", prompts.len(), rewards.len();
            hint: "give prompts, or take `group_std()`"
        );
    }
    let mut of_prompt = std::collections::BTreeMap::<&str, Vec<f64>>::new();
    for (prompt, reward) in prompts.iter().zip(rewards) {
        of_prompt.entry(prompt).or_default().push(*reward);
    }
    let all = (mean(rewards), deviation(rewards, 0) + 1e-6);
    let mut scales = std::collections::BTreeMap::new();
    for (prompt, new) in of_prompt {
        let name = format!("rewards of {prompt}");
        let mut seen = state.tensors.get(&name).map(read).transpose()?.unwrap_or_default();
        seen.extend(new);
        seen.drain(..seen.len().saturating_sub(last));
        let own = (mean(&seen), deviation(&seen, 0) + 1e-6);
        scales.insert(prompt, if seen.len() < least { all } else { own });
        state.tensors.insert(name, Tensor::new(seen, &Device::Cpu)?);
    }
    Ok(prompts
        .iter()
        .zip(rewards)
        .map(|(prompt, r)| (r - scales[prompt.as_str()].0) / scales[prompt.as_str()].1)
        .collect())
}

/// Advantages of several weighted rewards, each `[n]`.
pub fn combined(rewards: &[(f64, Vec<f64>)], group: usize, advantage: &Advantage, how: Combine) -> Result<Vec<f64>> {
    let n = rewards.first().map_or(0, |(_, r)| r.len());
    if let Some((_, other)) = rewards.iter().find(|(_, r)| r.len() != n) {
        bail!(Shape, "advantages: rewards must be of one length, got {n} and {}", other.len());
    }
    let summed = |parts: Vec<(f64, Vec<f64>)>| -> Vec<f64> {
        (0..n).map(|i| parts.iter().map(|(weight, part)| weight * part[i]).sum()).collect()
    };
    let mut state = MethodState::default();
    let each = || rewards.iter().map(|(w, r)| Ok((*w, advantage.of(r, group, &[], &mut MethodState::default())?)));
    match how {
        Combine::Rewards => advantage.of(&summed(rewards.to_vec()), group, &[], &mut state),
        Combine::Advantages => Ok(summed(each().collect::<Result<_>>()?)),
        Combine::Gdpo => {
            let sum = summed(each().collect::<Result<_>>()?);
            let (m, scale) = (mean(&sum), deviation(&sum, 0).max(1e-6));
            Ok(sum.into_iter().map(|a| (a - m) / scale).collect())
        }
    }
}

/// GARDO's diversity (arXiv:2512.24138): advantages of 0 or more, times the sample's distance to the nearest of its group, over the group's mean of
/// these distances.
pub fn diversity(advantages: &[f64], nearest: &[f64], group: usize) -> Vec<f64> {
    let rows = advantages.chunks(group).zip(nearest.chunks(group));
    let factors = rows.flat_map(|(a, d)| {
        let m = mean(d).max(1e-12);
        a.iter().zip(d).map(move |(a, d)| if *a < 0.0 { *a } else { a * d / m }).collect::<Vec<_>>()
    });
    factors.collect()
}

/// One less the cosine between each row of `features` `[n, ..]` and the most similar other one of its group.
pub fn nearest(features: &Tensor, group: usize) -> Result<Vec<f64>> {
    let rows = features.constant().to_dtype(DType::F64)?.flatten_from(1)?;
    let (n, width) = rows.dims2()?;
    let rows = read(&rows)?;
    let row = |i: usize| &rows[i * width..(i + 1) * width];
    let dot = |i: usize, j: usize| row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum::<f64>();
    let cosine = |i: usize, j: usize| dot(i, j) / (dot(i, i) * dot(j, j)).sqrt().max(1e-300);
    let least = |i: usize| {
        let own = i / group * group;
        let others = (own..own + group).filter(|j| *j != i && *j < n);
        others.map(|j| 1.0 - cosine(i, j)).fold(f64::INFINITY, f64::min)
    };
    Ok((0..n).map(least).map(|d| if d.is_finite() { d } else { 1.0 }).collect())
}

/// The share of the other samples that each beats.
pub fn win_rates(rewards: &[f64]) -> Vec<f64> {
    let others = rewards.len().saturating_sub(1).max(1) as f64;
    rewards.iter().map(|own| rewards.iter().filter(|other| own > other).count() as f64 / others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: [f64; 8] = [1.0, 2.0, 3.0, 6.0, 0.0, 0.0, 0.0, 0.0];
    const SECOND: [f64; 8] = [10.0, 10.0, 20.0, 20.0, 5.0, 6.0, 7.0, 8.0];

    fn close(got: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(got.len(), expected.len());
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < tolerance), "{got:?} {expected:?}");
    }

    fn of(scale: Scale, clip: Option<f64>) -> Vec<f64> {
        Advantage { scale, clip }.of(&FIRST, 4, &[], &mut MethodState::default()).unwrap()
    }

    #[test]
    fn scalings_give_the_published_numbers() {
        let cases = [
            (Scale::Group { ddof: 0, floor: 1e-4 }, None, [-1.06899, -0.53449, 0.0, 1.60348]),
            (Scale::Group { ddof: 1, floor: 1e-8 }, None, [-0.92582, -0.46291, 0.0, 1.38873]),
            (Scale::Batch { floor: 1e-4 }, None, [-0.99995, -0.49998, 0.0, 1.49993]),
            (Scale::Rms, Some(1.0), [-1.0, -0.75593, 0.0, 1.0]),
            (Scale::One, None, [-2.0, -1.0, 0.0, 3.0]),
        ];
        for (scale, clip, expected) in cases {
            let got = of(scale, clip);
            close(&got[..4], &expected, 6e-6);
            assert_eq!(got[4..], [0.0; 4], "{scale:?}: a constant group");
        }
        // DiffusionNFT's weight r = clip(A, 5) / 10 + 1 / 2
        let weights: Vec<f64> =
            of(Scale::Group { ddof: 0, floor: 0.0 }, Some(5.0)).iter().map(|a| a / 10.0 + 0.5).collect();
        close(&weights[..4], &[0.3931, 0.4465, 0.5, 0.6604], 6e-5);
    }

    #[test]
    fn several_rewards_are_combined() {
        let rewards = [(1.0, FIRST.to_vec()), (1.0, SECOND.to_vec())];
        let own = Advantage { scale: Scale::Group { ddof: 0, floor: 1e-9 }, clip: None };
        let gdpo = combined(&rewards, 4, &own, Combine::Gdpo).unwrap();
        close(&gdpo, &[-1.36376, -1.01144, 0.65912, 1.71608, -0.88431, -0.29477, 0.29477, 0.88431], 6e-6);
        let sum = combined(&rewards, 4, &own, Combine::Rewards).unwrap();
        close(&sum, &[-1.06134, -0.90972, 0.7581, 1.21296, -1.34164, -0.44721, 0.44721, 1.34164], 6e-6);
        let message =
            combined(&[(1.0, vec![1.0; 4]), (1.0, vec![1.0; 2])], 2, &own, Combine::Gdpo).unwrap_err().message;
        assert_eq!(message, "advantages: rewards must be of one length, got 4 and 2");
    }

    #[test]
    fn a_good_sample_counts_by_how_far_it_is_from_the_others() {
        let features = Tensor::new(&[[1f64, 0.0], [0.96, 0.28], [0.0, 1.0], [-1.0, 0.0]], &Device::Cpu).unwrap();
        let distances = nearest(&features, 4).unwrap();
        close(&distances, &[0.04, 0.04, 0.72, 1.0], 1e-12);
        close(&diversity(&[-2.0, -1.0, 0.0, 3.0], &distances, 4), &[-2.0, -1.0, 0.0, 6.6667], 4e-5);
        assert_eq!(win_rates(&[1.0, 3.0, 2.0]), [0.0, 1.0, 0.5]);
    }

    #[test]
    fn running_statistics_are_those_of_the_prompt_once_there_are_enough() {
        let ddpo = Advantage { scale: Scale::Running { last: 3, least: 2 }, clip: None };
        let mut state = MethodState::default();
        let prompts = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let first = ddpo.of(&[1.0, 3.0], 1, &prompts(&["a", "b"]), &mut state).unwrap();
        close(&first, &[-1.0, 1.0], 1e-5); // of the batch
        let second = ddpo.of(&[2.0, 3.0], 1, &prompts(&["a", "a"]), &mut state).unwrap();
        close(&second, &[0.0, 1.224745], 1e-5); // of 1, 2, 3
        let third = ddpo.of(&[4.0, 5.0], 1, &prompts(&["a", "a"]), &mut state).unwrap();
        close(&third, &[0.0, 1.224745], 1e-5); // of 3, 4, 5
        let message = ddpo.of(&[1.0], 1, &[], &mut state).unwrap_err().message;
        assert!(message.contains("needs the prompt of each sample"), "{message}");
    }

    #[test]
    fn groups_that_do_not_fit_are_refused() {
        let message = |n: usize, group| {
            let own = Advantage { scale: Scale::Rms, clip: None };
            own.of(&vec![1.0; n], group, &[], &mut MethodState::default()).unwrap_err().message
        };
        assert_eq!(message(3, 2), "advantages: the samples of a prompt must divide the 3 rewards, got 2");
        assert_eq!(message(3, 1), "advantages: there must be several samples of each prompt, got 1");
    }
}
